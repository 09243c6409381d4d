"""Why a service failed: the first failing rank, its cause and the remedy, from the logs of all ranks."""

from jobs.diagnose.diagnosis import Diagnosis, RankLog
from jobs.diagnose.minimal import as_case
from jobs.diagnose.read import diagnose, diagnose_each, explain, read_each

__all__ = ["Diagnosis", "RankLog", "as_case", "diagnose", "diagnose_each", "explain", "read_each"]
