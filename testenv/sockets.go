package testenv

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Socket is a TCP socket as the kernel lists it in /proc/net/tcp and tcp6.
type Socket struct {
	Local, Remote    netip.AddrPort // IPv4 addresses of an IPv6 socket unmapped
	State            string         // as in ss(8): ESTAB, LISTEN and so on
	TxQueue, RxQueue uint32         // bytes; of a listener Rx is the accept queue
	Inode            uint64
	FD               int
}

func (s Socket) String() string {
	return fmt.Sprintf("fd %d %s %s -> %s", s.FD, s.State, s.Local, s.Remote)
}

// Sockets lists the TCP sockets of a namespace that process pid holds. None is
// listed twice, even if several descriptors share it.
func Sockets(t TB, ns *NS, pid int) []Socket {
	t.Helper()
	held, err := heldSockets(pid)
	if err != nil {
		t.Fatalf("list sockets of process %d: %v", pid, err)
	}
	all, err := tcpSockets(ns)
	if err != nil {
		t.Fatalf("list sockets: %v", err)
	}
	var mine []Socket
	for _, s := range all {
		if fd, ok := held[s.Inode]; ok {
			s.FD = fd
			mine = append(mine, s)
		}
	}
	return mine
}

// heldSockets maps the inodes of a process's sockets to a descriptor.
func heldSockets(pid int) (map[uint64]int, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	held := make(map[uint64]int)
	for _, e := range fds {
		link, err := os.Readlink(filepath.Join(dir, e.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue // closed in the meantime
		}
		if err != nil {
			return nil, err
		}
		rest, ok := strings.CutPrefix(link, "socket:[")
		if !ok {
			continue
		}
		inode, err := strconv.ParseUint(strings.TrimSuffix(rest, "]"), 10, 64)
		if err != nil {
			return nil, err
		}
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			return nil, err
		}
		held[inode] = fd
	}
	return held, nil
}

func tcpSockets(ns *NS) ([]Socket, error) {
	var text strings.Builder
	err := ns.Do(func() error {
		for _, name := range []string{"tcp", "tcp6"} {
			// Not /proc/net, which shows the namespace of the main thread.
			b, err := os.ReadFile("/proc/thread-self/net/" + name)
			if errors.Is(err, os.ErrNotExist) && name == "tcp6" {
				continue // IPv6 is off
			}
			if err != nil {
				return err
			}
			text.Write(b)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var all []Socket
	for line := range strings.Lines(text.String()) {
		words := strings.Fields(line)
		if len(words) < 10 || words[0] == "sl" {
			continue
		}
		s, err := parseSocket(words)
		if err != nil {
			return nil, fmt.Errorf("parse socket line %q: %w", line, err)
		}
		all = append(all, s)
	}
	return all, nil
}

// parseSocket takes the words of a line of /proc/net/tcp.
func parseSocket(words []string) (s Socket, err error) {
	if s.Local, err = parseHexAddr(words[1]); err != nil {
		return s, err
	}
	if s.Remote, err = parseHexAddr(words[2]); err != nil {
		return s, err
	}
	state, err := strconv.ParseUint(words[3], 16, 8)
	if err != nil {
		return s, err
	}
	s.State = stateName(state)
	tx, rx, _ := strings.Cut(words[4], ":")
	for _, q := range []struct {
		text string
		to   *uint32
	}{{tx, &s.TxQueue}, {rx, &s.RxQueue}} {
		n, err := strconv.ParseUint(q.text, 16, 32)
		if err != nil {
			return s, err
		}
		*q.to = uint32(n)
	}
	s.Inode, err = strconv.ParseUint(words[9], 10, 64)
	return s, err
}

// parseHexAddr reads "0100007F:1F90": each 32 bits of the address are in the
// byte order of the machine, the port is not.
func parseHexAddr(s string) (netip.AddrPort, error) {
	host, port, ok := strings.Cut(s, ":")
	raw, err := hex.DecodeString(host)
	if err != nil || !ok || len(raw) != 4 && len(raw) != 16 {
		return netip.AddrPort{}, fmt.Errorf("bad address %q", s)
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	addr, _ := netip.AddrFromSlice(raw)
	n, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), nil
}

// stateName follows enum in the kernel's include/net/tcp_states.h.
func stateName(n uint64) string {
	names := []string{"", "ESTAB", "SYN-SENT", "SYN-RECV", "FIN-WAIT-1", "FIN-WAIT-2", "TIME-WAIT",
		"CLOSE", "CLOSE-WAIT", "LAST-ACK", "LISTEN", "CLOSING", "NEW-SYN-RECV"}
	if n == 0 || n >= uint64(len(names)) {
		return fmt.Sprintf("state-%d", n)
	}
	return names[n]
}
