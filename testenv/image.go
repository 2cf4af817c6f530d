package testenv

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Image is the name of the test image in every Podman instance. It holds one
// static program; see package testenv/server for what it does.
const Image = "localhost/sluice-test:latest"

//go:embed server/*.go
var serverSource embed.FS

// goMod makes a module of the embedded sources, which import the standard
// library only.
const goMod = "module server\n\ngo 1.26\n"

// ServerBinary returns the path of the test image's program, for running it in
// a plain namespace. It is built by the go tool once per machine and version of
// its source, and kept in the user's cache directory.
func ServerBinary(t TB) string {
	t.Helper()
	dir, err := build()
	if err != nil {
		t.Fatalf("build test server: %v", err)
	}
	return filepath.Join(dir, "server")
}

func imageTar(t TB) string {
	t.Helper()
	dir, err := build()
	if err != nil {
		t.Fatalf("build test image: %v", err)
	}
	return filepath.Join(dir, "image.tar")
}

// build returns a directory that holds the files "server" and "image.tar".
func build() (string, error) {
	key, err := sourceKey()
	if err != nil {
		return "", err
	}
	root, err := cacheRoot()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, key)
	// The directory appears by rename, so whoever sees it sees it whole.
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	unlock, err := lock(filepath.Join(root, "lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	tmp, err := os.MkdirTemp(root, "build-")
	if err != nil {
		return "", fmt.Errorf("make build directory: %w", err)
	}
	defer func() { _ = os.RemoveAll(tmp) }() // a directory that stays is in nobody's way
	out := filepath.Join(tmp, "out")
	if err := compile(filepath.Join(tmp, "src"), filepath.Join(out, "server")); err != nil {
		return "", err
	}
	if err := pack(filepath.Join(out, "server"), filepath.Join(out, "image.tar")); err != nil {
		return "", err
	}
	if err := os.Rename(out, dir); err != nil {
		return "", fmt.Errorf("publish build: %w", err)
	}
	return dir, nil
}

// sourceKey covers everything that decides the bytes of the build.
func sourceKey() (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "1 %s %s\n%s", runtime.Version(), runtime.GOARCH, goMod)
	files, err := serverSource.ReadDir("server")
	if err != nil {
		return "", fmt.Errorf("read server sources: %w", err)
	}
	for _, f := range files {
		b, err := serverSource.ReadFile("server/" + f.Name())
		if err != nil {
			return "", fmt.Errorf("read server sources: %w", err)
		}
		fmt.Fprintf(h, "%s %d\n%s", f.Name(), len(b), b)
	}
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}

// cacheRoot is never in a directory others can write to: what is found there
// is run as root.
func cacheRoot() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		base = "/var/cache"
	}
	root := filepath.Join(base, "sluice-testenv")
	if err := os.MkdirAll(root, 0o700); err != nil {
		return "", fmt.Errorf("make cache: %w", err)
	}
	return root, nil
}

// lock holds an exclusive lock on path among processes and goroutines.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock cache: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock cache: %w", err)
	}
	return func() { f.Close() }, nil
}

func compile(src, bin string) error {
	if err := os.MkdirAll(filepath.Dir(bin), 0o755); err != nil {
		return fmt.Errorf("make output directory: %w", err)
	}
	if err := os.CopyFS(src, serverSource); err != nil {
		return fmt.Errorf("write server sources: %w", err)
	}
	src = filepath.Join(src, "server")
	if err := os.WriteFile(filepath.Join(src, "go.mod"), []byte(goMod), 0o644); err != nil {
		return fmt.Errorf("write server module: %w", err)
	}
	cmd := exec.Command(goTool(), "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", bin, ".")
	cmd.Dir = src
	// Nothing of the caller's module, workspace or flags takes part.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off", "GO111MODULE=on", "GOOS=linux",
		"GOARCH="+runtime.GOARCH, "GOTOOLCHAIN=local", "PWD="+src)
	if _, err := os.UserCacheDir(); err != nil {
		cmd.Env = append(cmd.Env, "GOCACHE="+filepath.Join(filepath.Dir(src), "gocache"))
	}
	_, err := run(cmd, "")
	return err
}

// goTool prefers the tool that runs the tests.
func goTool() string {
	if root := os.Getenv("GOROOT"); root != "" {
		if p := filepath.Join(root, "bin", "go"); isFile(p) {
			return p
		}
	}
	return "go"
}

func isFile(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular()
}

// pack writes an image layer with the program as its only file.
func pack(bin, path string) (err error) {
	in, err := os.Open(bin)
	if err != nil {
		return fmt.Errorf("pack image: %w", err)
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return fmt.Errorf("pack image: %w", err)
	}
	out, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("pack image: %w", err)
	}
	defer func() {
		if cerr := out.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("pack image: %w", cerr)
		}
	}()
	w := tar.NewWriter(out)
	if err := w.WriteHeader(&tar.Header{Name: "server", Mode: 0o755, Size: st.Size()}); err != nil {
		return fmt.Errorf("pack image: %w", err)
	}
	if _, err := io.Copy(w, in); err != nil {
		return fmt.Errorf("pack image: %w", err)
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("pack image: %w", err)
	}
	return nil
}

// importImage loads the image by the API, which unlike the podman program costs
// no process in the instance.
func (p *Podman) importImage(ctx context.Context, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("import image: %w", err)
	}
	defer f.Close()
	q := url.Values{"reference": {Image}, "changes": {`ENTRYPOINT ["/server"]`}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://podman/v4.0.0/libpod/images/import?"+q.Encode(), f)
	if err != nil {
		return fmt.Errorf("import image: %w", err)
	}
	req.Header.Set("Content-Type", "application/x-tar")
	resp, err := p.http.Do(req)
	if err != nil {
		return fmt.Errorf("import image: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if err != nil {
		return fmt.Errorf("import image: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("import image: %s: %s", resp.Status, strings.TrimSpace(string(body)))
	}
	return nil
}
