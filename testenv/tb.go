// Package testenv builds the surroundings sluice is tested in: network
// namespaces, a private Podman service, a test image, and oracles that observe
// the kernel by programs of its own (conntrack, nft) rather than by sluice's
// code. It imports no other package of sluice.
//
// Nothing here ever changes the network namespace of the calling process:
// namespaces are made by this package, entered on throw-away threads, and held
// by file descriptor, so that they vanish with the process even if it is killed.
package testenv

import (
	"errors"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// TB is the part of testing.TB this package needs. A program that is not a test
// may pass its own implementation; it must run the Cleanup functions in reverse
// order before it exits, and Fatalf and Skipf must not return.
type TB interface {
	Helper()
	Name() string
	Cleanup(func())
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
	Failed() bool
}

// Require skips the test where network namespaces cannot be made: as a user
// other than root, or where the kernel refuses. With CI=true in the environment
// that is a failure instead, so that no run passes by having tested nothing.
// NewNS and all that builds on it require the same by themselves.
func Require(t TB) {
	t.Helper()
	requireRoot(t)
	ns := requireNS(t, "probe")
	if err := ns.Close(); err != nil {
		t.Fatalf("close probe namespace: %v", err)
	}
}

func requireRoot(t TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		skip(t, "needs root")
	}
	RequirePrograms(t, "ip", "nsenter", "nft", "conntrack")
}

// requireNS skips only where the kernel has no namespaces or denies them; to
// run out of something is a failure.
func requireNS(t TB, name string) *NS {
	t.Helper()
	ns, err := newNS(name)
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		skip(t, "needs network namespaces: %v", err)
	case err != nil:
		t.Fatalf("%v", err)
	}
	return ns
}

// RequirePrograms skips the test where a program is missing; with CI=true that
// is a failure.
func RequirePrograms(t TB, names ...string) {
	t.Helper()
	var errs []error
	for _, n := range names {
		if _, err := exec.LookPath(n); err != nil {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		skip(t, "needs programs: %v", err)
	}
}

func skip(t TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("skip refused because CI=true: "+format, args...)
	}
	t.Skipf(format, args...)
}
