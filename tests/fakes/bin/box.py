"""What the stand-ins share: their orders, their images, and containers made of the host's own directories.

A container is a real one: mount and user namespaces, a root directory of its own, the host's /usr under it, fresh /tmp.
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAME = Path(sys.argv[0]).name
HEAD = 96
IMAGE_PATH = "/image/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PROFILE = "/usr/local/bin:/usr/bin:/bin"  # what /etc/profile of the image makes of it, as Debian's does


def orders():
    """What the test wants of the programs, by their words: {"enroot import": {"slow_s": 1}}."""
    return json.loads((HERE / "orders.json").read_text())


def order(what):
    return orders().get(what, {})


def note(*words):
    with (HERE / "calls.jsonl").open("a") as file:
        file.write(json.dumps(words) + "\n")


def fail(text, code=1):
    print(text, file=sys.stderr, flush=True)
    sys.exit(code)


def misbehave(what):
    """Crash, hang, be slow or end early, where the test says so."""
    told = order(what)
    if told.get("say"):
        fail(told["say"], told.get("code", 1))
    time.sleep(told.get("slow_s", 0))
    if told.get("hang"):
        note("hangs", what)
        time.sleep(600)
    if told.get("exit0"):
        sys.exit(0)


def keep_writing(folder, told):
    """Go on as tar does whose enroot was killed, where the test says so: what removes its files finds new ones."""
    if told.get("writes"):
        note("writes", os.getpid())
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            os.makedirs(folder, exist_ok=True)
            Path(folder, "more").write_bytes(b"x" * 1000)
            time.sleep(0.002)


def write_image(path, name, pause_s):
    """As mksquashfs does: data first, the superblock last of all."""
    payload = (
        json.dumps({"image": name, "of": orders()["images"].get(name), "os": f"fake {name}"}).encode() + b" " * 20_000
    )
    with open(path, "wb") as file:
        file.write(b"\0" * HEAD)
        for at in range(0, len(payload), 5000):
            file.write(payload[at : at + 5000])
            file.flush()
            time.sleep(pause_s)
        file.seek(0)
        file.write(superblock(HEAD + len(payload)))


def superblock(size):
    return b"hsqs".ljust(40, b"\0") + size.to_bytes(8, "little") + b"\1" * (HEAD - 48)


def superblock_is_valid(path):
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError:
        return False
    return len(head) == HEAD and head[:4] == b"hsqs" and head[48:] == b"\1" * (HEAD - 48)


def unpack(image, root, pause_s):
    """The directory is there at once, its shell comes last: started in between it is a half-made root."""
    text = Path(image).read_bytes()[HEAD:]
    os.mkdir(root)
    try:
        system = json.loads(text)["os"]
    except ValueError:
        fail("FATAL ERROR: File system corruption detected")
    for name in ("dev", "etc", "opt", "proc", "root", "run", "sys", "tmp", "var", "usr", "usr/bin"):
        os.mkdir(f"{root}/{name}")
        time.sleep(pause_s / 10)
    for link in ("bin", "sbin", "lib", "lib64"):
        if Path(f"/{link}").is_symlink():
            os.symlink(f"usr/{link}", f"{root}/{link}")
        elif link != "bin":
            os.mkdir(f"{root}/{link}")
    Path(root, "etc/os-release").write_text(f'PRETTY_NAME="{system}"\n')
    Path(root, "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    time.sleep(pause_s)
    Path(root, "usr/bin/sh").write_text("")


INSIDE = """set -e
root=$1 remap=$2 rw=$3 tmp=$4 cwd=$5; shift 5
mount --bind "$root" "$root"
mount --rbind /usr "$root/usr"
for name in lib lib64; do
  [ -L "/$name" ] || [ ! -d "/$name" ] || { mkdir -p "$root/$name"; mount --rbind "/$name" "$root/$name"; }
done
mount --rbind /dev "$root/dev"
mount --rbind /proc "$root/proc"
if [ "$tmp" = y ]; then mount -t tmpfs tmp "$root/tmp"; mount -t tmpfs run "$root/run"; fi
touch "$root/etc/ld.so.cache" && mount --bind /etc/ld.so.cache "$root/etc/ld.so.cache"
while [ "$1" != -- ]; do
  kind=$1 source=$2 target=$root$3 options=$4; shift 4
  case $kind in
  bind)
    if [ -d "$source" ]; then mkdir -p "$target"; else mkdir -p "${target%/*}"; [ -e "$target" ] || touch "$target"; fi
    mount --rbind "$source" "$target" || { echo "failed to mount: $source at $target" >&2; exit 1; }
    case ",$options," in *,ro,*) mount -o remount,bind,ro "$target";; esac;;
  tmpfs) mkdir -p "$target"; mount -t tmpfs ${options:+-o "$options"} tmpfs "$target";;
  umount) umount -l "$target";;
  esac
done
shift
[ "$rw" = y ] || mount -o remount,bind,ro "$root"
if [ "$cwd" ] && ! chroot "$root" test -d "$cwd"; then
  echo "slurmstepd: error: pyxis: couldn't chdir to $cwd: No such file or directory" >&2
  exit 1
fi
exec chroot "$root" /usr/bin/env -i ${cwd:+-C "$cwd"} "$@"
"""


def enter(root, mounts, env, command, *, remap, rw, tmp=True, cwd=""):
    """Become a command in a container. `mounts`: (kind, source, target, options)."""
    if not Path(root, "usr/bin/sh").exists():
        note("half", str(root))
        fail(f"enroot-switchroot: failed to execute: /bin/sh: No such file or directory ({root})")
    for kind, source, _, _ in mounts:
        if kind == "bind" and not os.path.exists(source):
            fail(f"enroot-mount: failed to mount: {source}: No such file or directory")
    flat = [word for mount in mounts for word in mount]
    user = "--map-root-user" if remap else "--map-current-user"
    argv = ["unshare", "--user", user, "--mount", "bash", "-c", INSIDE, "bash", str(root)]
    argv += ["y" if remap else "n", "y" if rw else "n", "y" if tmp else "n", cwd, *flat, "--"]
    argv += [f"{name}={value}" for name, value in env.items()] + command
    # A host without a marked environment: what is inside gets its own by env -i.
    os.execvp("unshare", argv)


def join(pid, env, command):
    """Become a further command in the container of a process, with exactly these variables."""
    nsenter = shutil.which("nsenter")
    argv = ["nsenter", "-t", str(pid), "-U", "-m", "-r", "--preserve-credentials"]
    os.execve(nsenter, [*argv, *command], env)


def environ(pid):
    """What a process was started with; None: it is gone."""
    try:
        pairs = [one.partition("=") for one in Path(f"/proc/{pid}/environ").read_text().split("\0") if one]
    except OSError:
        return None
    return {name: value for name, _, value in pairs}


def grammar(words, with_value, without):
    """Split words into options, in order, and the rest. An option that is not listed is refused: None."""
    found, at = [], 0
    while at < len(words):
        word = words[at]
        name, equals, value = word.partition("=")
        if word == "--":
            at += 1
            break
        if not word.startswith("-") or word == "-":
            break
        if word in without:
            found.append((word, True))
        elif equals and name.startswith("--") and name in with_value:
            found.append((name, value))
        elif word in with_value and at + 1 < len(words):
            at += 1
            found.append((word, words[at]))
        else:
            return None, word
        at += 1
    return found, words[at:]


def remove_tree(path):
    for folder, _, _ in os.walk(path):
        os.chmod(folder, 0o700)
    shutil.rmtree(path)
