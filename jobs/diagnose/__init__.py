"""Why a service failed: the first failing rank, its cause and the remedy, from the logs of all ranks."""

from jobs.diagnose.diagnosis import Diagnosis, RankLog
from jobs.diagnose.read import diagnose, diagnose_each, explain, invalid_reason

__all__ = ["Diagnosis", "RankLog", "diagnose", "diagnose_each", "explain", "invalid_reason"]
