package testenv

// The two shell programs behind a Podman instance. They are shell because each
// is a list of mounts to make before an exec, which a Go program cannot do to
// itself once its threads exist.

// keeper runs in the host's network namespace and a mount namespace of its own,
// as: keeper NAME DIR. It makes the cgroup NAME, starts the holder in it and
// waits for the end of its standard input: whether the test closed it or died,
// everything in the cgroup is killed, and cgroup and DIR are removed.
//
// No controller is turned on in the root cgroup, since that would outlive the
// instance; Podman gets those the machine delegates already.
const keeper = `
set -eu
name=$1 dir=$2
mnt=$dir/cg
cg=$mnt/$name
down() {
	set +e
	trap - EXIT
	if [ -d "$cg" ]; then
		echo 1 > "$cg/cgroup.kill"
		while grep -q '^populated 1' "$cg/cgroup.events"; do sleep 0.01; done
		find "$cg" -depth -type d -exec rmdir {} \;
	fi
	umount -l "$mnt"
	rm -rf --one-file-system "$dir"
}
trap down EXIT
mkdir -p "$mnt"
mount -t cgroup2 "$name" "$mnt"
mkdir "$cg" "$cg/svc"
echo "controllers $(cat "$cg/cgroup.controllers")"
(
	# The cgroup namespace has its root where the process is when it is made;
	# the holder then moves down to the leaf.
	echo 0 > "$cg/cgroup.procs"
	exec unshare --cgroup --mount --propagation private sh -c "$HOLDER" holder "$dir"
) </dev/null &
exec >&-
read -r _ || :
`

// holder gives the instance its own /sys/fs/cgroup, /dev/shm (Podman's lock
// file) and /run (network namespaces, runtime state, network lock), says so and
// then only keeps these namespaces: overlay mounts of containers live in them
// and outlast the service.
const holder = `
set -eu
dir=$1
name=${dir##*/}
echo 0 > "$dir/cg/$name/svc/cgroup.procs"
umount -l "$dir/cg"
umount -R /sys/fs/cgroup
mount -t cgroup2 "$name" /sys/fs/cgroup
mount -t tmpfs "$name" /run
mkdir /run/netns /run/lock /run/dir
mount --bind "$dir" /run/dir # which may lie below /dev/shm
mount -t tmpfs "$name" /dev/shm
mkdir -p "$dir"
mount --bind /run/dir "$dir"
umount /run/dir
rmdir /run/dir
echo "up $$"
exec >&-
exec sleep infinity
`
