# What the entry script of a container begins with (containers/entry.py, which fills in the words between @).
trap '' USR1 USR2
serving_sweep_step=${SLURM_JOB_ID-}.${SLURM_STEP_ID-}
fail() { echo "error: $1 = $2: $3" >&2; exit @REFUSED@; }
identity() { stat -L -c %d:%i -- "$1" 2>/dev/null || echo absent; }
option() {
  local target options wanted found=
  wanted=$(readlink -f -- "$1")
  while read -r _ _ _ _ target options _; do [ "$target" = "$wanted" ] && found=$options; done < /proc/self/mountinfo
  case ",$found," in *",$2,"*) return 0;; *) return 1;; esac
}

# serving_sweep_packages BEGINNING: the installed Python packages whose names and versions begin so, one a line.
serving_sweep_packages() {
  local site found
  for site in @SITES@; do for found in "$site"/"$1"*.dist-info; do
    [ -e "$found" ] && { found=${found##*/}; echo "${found%.dist-info}"; }
  done; done
}

# serving_sweep_release RELEASE MINOR: fails where vllm-ascend is there in other releases alone, by some file names.
# 0.9.1 is also 0.9.1rc2 and 0.9.1.post1. A build between two releases carries the next number: for those the first two
# numbers count.
serving_sweep_release() {
  local found other= same=
  for found in $(serving_sweep_packages vllm_ascend-); do
    found=${found#vllm_ascend-}
    case $found in "$1"|"$1"[!0-9]*|"$2".*dev*) same=1;; *) other=$found;; esac
  done
  [ -z "$other" ] || [ "$same" ] || fail engine.release "$1" "the image has vllm-ascend $other; set engine.release to it,\
 take another image, or set engine.checks_release=false"
}

serving_sweep_proof() {
  local found
  echo "namespace $(readlink /proc/self/ns/mnt)"
  echo "root $(identity /)"
  echo "step $serving_sweep_step"
  ( . /etc/os-release 2>/dev/null && echo "os $PRETTY_NAME" )
  for found in $(serving_sweep_packages vllm); do echo "package $found"; done
}
