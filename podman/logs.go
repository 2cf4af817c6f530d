package podman

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/containers/podman/v5/pkg/bindings"
)

// Logs returns the last lines that a replica wrote, standard output and error
// mixed, at most n of them and 64 KiB, oldest first. It needs a log driver that
// can be read: journald or k8s-file.
func (c *Client) Logs(ctx context.Context, name string, n int) ([]string, error) {
	if n <= 0 {
		return nil, nil
	}
	var text []byte
	err := c.ask(ctx, "read logs of container "+name, func(ctx context.Context) error {
		conn, err := bindings.GetClient(ctx)
		if err != nil {
			return err
		}
		res, err := conn.DoRequest(ctx, nil, http.MethodGet, "/containers/%s/logs", url.Values{
			"stdout": {"true"},
			"stderr": {"true"},
			"tail":   {strconv.Itoa(n)},
		}, nil, name)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if !res.IsSuccess() {
			return res.Process(nil)
		}
		return demux(res.Body, func(frame []byte) {
			text = append(text, frame...)
			if over := len(text) - maxOutput; over > 0 {
				text = text[over:]
			}
		})
	})
	if err != nil {
		return nil, err
	}
	lines := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	if lines[len(lines)-1] == "" {
		return nil, nil
	}
	return lines[max(0, len(lines)-n):], nil
}
