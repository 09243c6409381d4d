# Ends the process group $1 of a command of `docker exec`, and what it left in other ones, by the tag $2 (docker.py).
left() {
  kill "-$1" -- "-$2" 2> /dev/null && echo "$2"
  for one in /proc/[0-9]*; do
    while IFS= read -r -d '' word; do
      [ "$word" = "$3" ] && kill "-$1" "${one#/proc/}" 2> /dev/null && echo "$one"
    done < "$one/environ"
  done
} 2> /dev/null
for _ in {1..50}; do [ "$(left KILL "$@")" ] || exit 0; sleep 0.1; done
echo alive
