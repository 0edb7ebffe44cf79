"""Building a split: any process on any node can make any shard, without a coordinator.

Shard s holds the source's samples from ``s * shard_samples`` on, less those that are rejected,
and its bytes follow from these samples and the settings alone. Tars of others become shards group
by group (:mod:`t2i_hpc.data.build.tar_groups`). All work is done in a hidden folder beside the
split that is to appear::

    .SPLIT.partial/build.json        what is built, with the identity of each shard
    .SPLIT.partial/vocabulary.json   becomes that of the whole folder
    .SPLIT.partial/000012.json       the record of a shard that is done
    .SPLIT.partial/000012.rows       its rows of the index
    .SPLIT.partial/split/000012.tar  the shard: written first, its record last

A shard is done when its record has its identity, so an interrupted build resumes, and one with
other settings or another source starts over by itself. When all are done, the tables and the
manifest are written and ``split`` is renamed to its target.
"""
