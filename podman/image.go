package podman

import (
	"context"
	"errors"
	"fmt"

	"github.com/containers/podman/v5/pkg/bindings/images"
)

// Pull makes sure of the Spec's image by its pull policy. Create does the same
// by itself; Pull is for having the image before somebody waits for it.
//
// Pulls of the same image share one transfer, which goes on when its callers
// give up: an image too large for the deadline of one wake is there for a later
// one. ErrImage, with Podman's words, if the image is not to be had.
func (c *Client) Pull(ctx context.Context, s Spec) error {
	verb := "pull image " + s.Image
	policy := s.Pull
	if policy == "" {
		policy = "missing"
	}
	if policy == "never" {
		return c.present(ctx, s.Image)
	}
	done := c.pulls.DoChan(policy+" "+s.Image, func() (any, error) {
		return nil, c.do(c.life, verb, func(ctx context.Context) error {
			_, err := images.Pull(ctx, s.Image, new(images.PullOptions).WithPolicy(policy).WithQuiet(true))
			return err
		})
	})
	select {
	case <-ctx.Done():
		return fmt.Errorf("%s: not there yet: %w", verb, ctx.Err())
	case result := <-done:
		err := result.Err
		switch {
		case err == nil, errors.Is(err, ErrUnreachable), errors.Is(err, ErrImage), errors.Is(err, context.Canceled):
			return err
		}
		return fmt.Errorf("%w: %s", ErrImage, oneLine(err.Error()))
	}
}

// present fails unless the image is in local storage.
func (c *Client) present(ctx context.Context, image string) error {
	var there bool
	err := c.ask(ctx, "look for image "+image, func(ctx context.Context) (err error) {
		there, err = images.Exists(ctx, image, nil)
		return err
	})
	if err == nil && !there {
		err = fmt.Errorf("%w: %s is not in local storage and pull is \"never\"", ErrImage, image)
	}
	return err
}
