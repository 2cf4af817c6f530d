package podman

import (
	"context"

	"github.com/containers/podman/v5/pkg/bindings/system"
)

// A Host is what Podman says of itself.
type Host struct {
	NetworkBackend string // netavark or cni
	Rootless       bool
	CgroupsV2      bool
}

// Host asks Podman about its host, which takes it some 150 ms.
func (c *Client) Host(ctx context.Context) (Host, error) {
	var h Host
	err := c.ask(ctx, "ask podman about its host", func(ctx context.Context) error {
		info, err := system.Info(ctx, nil)
		if err != nil {
			return err
		}
		h = Host{
			NetworkBackend: info.Host.NetworkBackend,
			Rootless:       info.Host.Security.Rootless,
			CgroupsV2:      info.Host.CgroupsVersion == "v2",
		}
		return nil
	})
	return h, err
}
