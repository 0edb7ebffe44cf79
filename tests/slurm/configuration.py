"""The configuration files of the lab: small, quick to react, nothing that needs systemd."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Sequence
from pathlib import Path

_CPUS, _MEGABYTES = 64, 1_000_000


def slurm_configuration(folder: Path, port: int, nodes: Sequence[str]) -> str:
    """Return slurm.conf: partitions main (preempts), low (is preempted) and tiny (one node)."""
    names, count = ",".join(nodes), len(nodes)
    addresses = ",".join(f"127.0.0.{11 + place}" for place in range(count))
    ports = f"[{port + 3}-{port + 2 + count}]"
    user = getpass.getuser()
    return f"""
ClusterName=lab
SlurmctldHost={socket.gethostname()}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
SlurmctldParameters=preempt_send_user_signal
PriorityType=priority/basic
SlurmctldTimeout=60
SlurmdTimeout=15
KillWait=5
UnkillableStepTimeout=180
InactiveLimit=0
MinJobAge=86400
ReturnToService=2
JobRequeue=1
MaxArraySize=4
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port + 1}
AccountingStoragePass={folder}/munge.sock
NodeName={names} NodeHostname={names} NodeAddr={addresses} Port={ports} CPUs={_CPUS} \
RealMemory={_MEGABYTES} State=UNKNOWN
PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE PriorityTier=10 State=UP
PartitionName=low Nodes={names} MaxTime=INFINITE PriorityTier=1 GraceTime=20 State=UP
PartitionName=cancel Nodes={names} MaxTime=INFINITE PriorityTier=1 PreemptMode=CANCEL GraceTime=0 \
State=UP
PartitionName=tiny Nodes={nodes[0]} MaxTime=10 PriorityTier=10 State=UP
"""


def accounting(folder: Path, port: int) -> str:
    """Return slurmdbd.conf."""
    return f"""
DbdHost={socket.gethostname()}
DbdAddr=127.0.0.1
DbdPort={port + 1}
SlurmUser={getpass.getuser()}
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={port + 2}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/slurmdbd.pid
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
"""


def database_user() -> str:
    """Return the statements that make slurmdbd's database and user."""
    users = ("'slurm'@'%'", "'slurm'@'localhost'")
    made = [f"create user if not exists {user} identified by 'slurm'" for user in users]
    rights = [f"grant all on slurm_acct_db.* to {user}" for user in users]
    return "; ".join(["create database if not exists slurm_acct_db", *made, *rights])
