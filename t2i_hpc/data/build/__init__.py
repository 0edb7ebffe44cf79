"""Building a split: each shard is made alone, so any process on any node can make any of them.

Shard s holds the source's samples from ``s * shard_samples`` on, less those that are rejected,
and its bytes follow from these samples and the settings alone. All work is done in a hidden
folder beside the split that is to appear::

    .SPLIT.partial/build.json        what is built, with the identity of each shard
    .SPLIT.partial/vocabulary.json   the words, which become those of the whole folder
    .SPLIT.partial/000012.json       what is known of a shard that is done
    .SPLIT.partial/000012.rows       its rows of the index
    .SPLIT.partial/split/000012.tar  the shard: written first, its note last

A shard is done when its note bears its identity, so a build that was interrupted goes on where
it stopped, and one with other settings or another source starts anew by itself. When all are
done, the tables and the manifest are written and ``split`` is renamed to what it is to be.
"""
