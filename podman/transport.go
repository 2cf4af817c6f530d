package podman

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"

	"github.com/containers/podman/v5/pkg/errorhandling"
)

// A call is one call of the bindings under the caller's context: it lends the
// bindings their connection and remembers why a request got no answer.
type call struct {
	context.Context
	conn context.Context
	lost error // of the round trip; the answer is made up then
}

// callKey finds the call in the context of a request.
type callKey struct{}

// Value looks in the call, in the bindings' context, then in the caller's.
func (c *call) Value(key any) any {
	if key == (callKey{}) {
		return c
	}
	if v := c.conn.Value(key); v != nil {
		return v
	}
	return c.Context.Value(key)
}

// transport answers a request that got no answer with a made-up error response.
// Given the error instead, the bindings would sleep for 0.6 s in all while they
// send the request twice more, which for a start or an exec is wrong as well as
// slow.
type transport struct{ base http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := t.base.RoundTrip(req)
	if err == nil {
		return res, nil
	}
	c, ok := req.Context().Value(callKey{}).(*call)
	if !ok {
		return nil, err
	}
	c.lost = err
	body, err := json.Marshal(errorhandling.ErrorModel{
		Because:      "no answer",
		Message:      c.lost.Error(),
		ResponseCode: http.StatusServiceUnavailable,
	})
	if err != nil {
		return nil, err
	}
	return &http.Response{
		Status:        http.StatusText(http.StatusServiceUnavailable),
		StatusCode:    http.StatusServiceUnavailable,
		Proto:         "HTTP/1.1",
		ProtoMajor:    1,
		ProtoMinor:    1,
		Header:        http.Header{"Content-Type": {"application/json"}},
		Body:          io.NopCloser(bytes.NewReader(body)),
		ContentLength: int64(len(body)),
		Request:       req,
	}, nil
}

// do runs f, a use of the bindings, for the purpose named by verb, and explains
// its error.
func (c *Client) do(ctx context.Context, verb string, f func(context.Context) error) error {
	call := &call{Context: ctx, conn: c.conn}
	err := f(call)
	return c.explain(ctx, verb, call.lost, err)
}

// ask is do for requests that change nothing and must be answered soon.
func (c *Client) ask(ctx context.Context, verb string, f func(context.Context) error) error {
	soon, cancel := context.WithTimeoutCause(ctx, c.timeout, errSilent)
	defer cancel()
	return c.do(soon, verb, f)
}
