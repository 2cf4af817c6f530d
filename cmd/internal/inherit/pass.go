package inherit

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The talk of two daemons over a unix stream socket, in lines; one with a name
// comes with that descriptor. One: "take". Other: names, "end". One: "commit".
// Other: "gone". Until then the other can take all back by closing the
// connection, and so can the one.
const (
	lineTake   = "take"
	lineEnd    = "end"
	lineCommit = "commit"
	lineGone   = "gone"
)

const (
	passTimeout = 10 * time.Second
	// CommitTimeout is how long a daemon waits for its successor to be ready.
	CommitTimeout = 30 * time.Second
)

// Await waits for the successor to ask.
func Await(conn *net.UnixConn) error {
	if err := conn.SetDeadline(time.Now().Add(passTimeout)); err != nil {
		return err
	}
	if err := expect(conn, lineTake); err != nil {
		return fmt.Errorf("pass sockets: %w", err)
	}
	return nil
}

// Give passes sockets to the successor, whom they belong to as well then, and
// waits until it is ready to go on with them.
func Give(conn *net.UnixConn, socks []Socket) error {
	if err := conn.SetDeadline(time.Now().Add(passTimeout)); err != nil {
		return err
	}
	for _, s := range socks {
		if _, _, err := conn.WriteMsgUnix([]byte(s.Name+"\n"), unix.UnixRights(s.FD), nil); err != nil {
			return fmt.Errorf("pass %s: %w", s.Name, err)
		}
	}
	if _, err := io.WriteString(conn, lineEnd+"\n"); err != nil {
		return fmt.Errorf("pass sockets: %w", err)
	}
	if err := conn.SetDeadline(time.Now().Add(CommitTimeout)); err != nil {
		return err
	}
	if err := expect(conn, lineCommit); err != nil {
		return fmt.Errorf("wait for the other daemon: %w", err)
	}
	// Whoever can write this has committed, whether or not it is read.
	if _, err := io.WriteString(conn, lineGone+"\n"); err != nil {
		return fmt.Errorf("pass sockets: %w", err)
	}
	return nil
}

// Take asks the predecessor for its sockets.
func Take(conn *net.UnixConn) (*Set, error) {
	set, err := take(conn)
	if err != nil {
		for _, s := range set.Rest() {
			err = errors.Join(err, s.Close())
		}
		return nil, fmt.Errorf("take over sockets: %w", err)
	}
	return set, nil
}

func take(conn *net.UnixConn) (*Set, error) {
	set := &Set{}
	if err := conn.SetDeadline(time.Now().Add(CommitTimeout)); err != nil {
		return set, err
	}
	if _, err := io.WriteString(conn, lineTake+"\n"); err != nil {
		return set, err
	}
	// A descriptor is the end of what one read returns, and names are short.
	b, oob := make([]byte, 1024), make([]byte, unix.CmsgSpace(4))
	for {
		n, on, flags, _, err := conn.ReadMsgUnix(b, oob)
		if err != nil {
			return set, err
		}
		if n == 0 {
			return set, io.ErrUnexpectedEOF
		}
		fd, err := right(oob[:on])
		if err != nil {
			return set, err
		}
		line, ok := strings.CutSuffix(string(b[:n]), "\n")
		switch {
		case ok && fd < 0 && line == lineEnd:
			return set, nil
		case !ok, fd < 0, flags&(unix.MSG_CTRUNC|unix.MSG_TRUNC) != 0, strings.Contains(line, "\n"):
			if fd >= 0 {
				unix.Close(fd)
			}
			return set, fmt.Errorf("unexpected %q", b[:n])
		}
		if fd, err = Lift(fd); err != nil {
			return set, err
		}
		set.Add(Socket{Name: line, FD: fd})
	}
}

// Lift moves a descriptor above those that select(2) can wait for, of which there
// are few: netlink libraries poll by it.
func Lift(fd int) (int, error) {
	const lowest = 1024
	lifted, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, lowest)
	if err != nil { // the limit may be as low as that
		return fd, nil
	}
	return lifted, os.NewSyscallError("close", unix.Close(fd))
}

// right returns the one descriptor of a control message, or -1.
func right(oob []byte) (int, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return -1, os.NewSyscallError("recvmsg", err)
	}
	for _, m := range msgs {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return -1, os.NewSyscallError("recvmsg", err)
		}
		for _, fd := range fds {
			return fd, nil
		}
	}
	return -1, nil
}

// Commit tells the predecessor that this process goes on. After an error the
// predecessor does.
func Commit(conn *net.UnixConn) error {
	if err := conn.SetDeadline(time.Now().Add(passTimeout)); err != nil {
		return err
	}
	_, err := io.WriteString(conn, lineCommit+"\n")
	if err == nil {
		err = expect(conn, lineGone)
	}
	if err != nil {
		return fmt.Errorf("take over: the running daemon does not give way any more: %w", err)
	}
	return nil
}

// expect reads one line, a byte at a time: what follows may be a descriptor's.
func expect(conn *net.UnixConn, want string) error {
	got, b := "", make([]byte, 1)
	for len(got) <= len(want) {
		if _, err := io.ReadFull(conn, b); err != nil {
			return err
		}
		if b[0] == '\n' {
			break
		}
		got += string(b)
	}
	if got != want {
		return fmt.Errorf("unexpected %q", got)
	}
	return nil
}
