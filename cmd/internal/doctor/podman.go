package doctor

import (
	"context"
	"errors"
	"time"

	"sluice/podman"
)

// patience is how long Podman may take to answer everything.
const patience = 20 * time.Second

// podman looks at the service, at the networks, and at the images.
func (h *Host) podman(ctx context.Context, r *report) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	pod, err := podman.Open(ctx, h.Config.Daemon.Podman, podman.Options{})
	if err != nil {
		r.fail("podman", "systemctl enable --now podman.socket, or set daemon.podman", "%v", err)
		return
	}
	defer pod.Close()
	version, err := pod.Version(ctx)
	if err != nil {
		r.fail("podman", "see what 'podman info' says", "%v", err)
		return
	}
	about, err := pod.Host(ctx)
	switch {
	case err != nil:
		r.fail("podman", "see what 'podman info' says", "%v", err)
		return
	case about.Rootless:
		r.fail("podman", "set daemon.podman to the socket of root's Podman", "%s is a user's Podman, whose containers have no addresses on this host", h.Config.Daemon.Podman)
		return
	case about.NetworkBackend != "" && about.NetworkBackend != "netavark":
		r.warn("podman", `set network_backend = "netavark" in containers.conf`, "networks are made by %s, which sluice was never tried with", about.NetworkBackend)
	}
	r.ok("podman", "version %s", version)
	networks, images := map[string]bool{}, map[string]bool{}
	for _, s := range h.Config.Services {
		k := s.Container
		if k == nil {
			continue
		}
		if !networks[k.Network] {
			networks[k.Network] = true
			switch n, err := pod.Network(ctx, k.Network); {
			case err != nil:
				r.fail("network", "podman network create "+k.Network, "service %s: %v", s.Name, err)
			case n.Driver != "bridge":
				r.fail("network", "give the service a network of the driver bridge", "service %s: network %s is of driver %s", s.Name, k.Network, n.Driver)
			default:
				r.ok("network", "%s", k.Network)
			}
		}
		if !images[k.Image] {
			images[k.Image] = true
			switch err := pod.Pull(ctx, podman.Spec{Image: k.Image, Pull: "never"}); {
			case err == nil:
				r.ok("image", "%s", k.Image)
			case !errors.Is(err, podman.ErrImage):
				r.fail("image", "see what 'podman images' says", "%s: %v", k.Image, err)
			case k.Pull == "never":
				r.fail("image", `build or load it, or set pull = "missing"`, "%s of service %s is not here", k.Image, s.Name)
			default:
				r.warn("image", "podman pull "+k.Image, "%s of service %s is not here: the first client would wait for it", k.Image, s.Name)
			}
		}
	}
}
