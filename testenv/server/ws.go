package main

import (
	"bufio"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// Opcodes of RFC 6455 section 5.2.
const (
	opClose = 8
	opPing  = 9
	opPong  = 10
)

const maxFrame = 1 << 20

var errFrame = errors.New("bad frame")

// webSocket echoes every data frame, whole or part of a message, as it came.
func webSocket(rw http.ResponseWriter, r *http.Request) {
	key := r.Header.Get("Sec-WebSocket-Key")
	if key == "" || !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		http.Error(rw, "want a WebSocket", http.StatusUpgradeRequired)
		return
	}
	c, buf, err := http.NewResponseController(rw).Hijack()
	if err != nil {
		http.Error(rw, err.Error(), http.StatusInternalServerError)
		return
	}
	defer c.Close()
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	fmt.Fprintf(buf, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
		base64.StdEncoding.EncodeToString(sum[:]))
	for buf.Flush() == nil {
		head, payload, err := readFrame(buf.Reader)
		if err != nil {
			return
		}
		switch head & 0x0f {
		case opPing:
			head = head&0xf0 | opPong
		case opPong:
			continue
		}
		writeFrame(buf.Writer, head, payload)
		if head&0x0f == opClose {
			_ = buf.Flush()
			return
		}
	}
}

// readFrame returns the first byte (FIN and opcode) and the unmasked payload of
// a client's frame.
func readFrame(r *bufio.Reader) (head byte, payload []byte, err error) {
	var h [2]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	if h[1]&0x80 == 0 { // clients must mask
		return 0, nil, errFrame
	}
	n := uint64(h[1] & 0x7f)
	switch n {
	case 126:
		var b [2]byte
		_, err = io.ReadFull(r, b[:])
		n = uint64(binary.BigEndian.Uint16(b[:]))
	case 127:
		var b [8]byte
		_, err = io.ReadFull(r, b[:])
		n = binary.BigEndian.Uint64(b[:])
	}
	if err != nil {
		return 0, nil, err
	}
	if n > maxFrame {
		return 0, nil, errFrame
	}
	var mask [4]byte
	if _, err := io.ReadFull(r, mask[:]); err != nil {
		return 0, nil, err
	}
	payload = make([]byte, n)
	if _, err := io.ReadFull(r, payload); err != nil {
		return 0, nil, err
	}
	for i := range payload {
		payload[i] ^= mask[i%4]
	}
	return h[0], payload, nil
}

// writeFrame leaves errors to the next Flush.
func writeFrame(w *bufio.Writer, head byte, payload []byte) {
	_ = w.WriteByte(head)
	switch n := len(payload); {
	case n < 126:
		_ = w.WriteByte(byte(n))
	case n < 1<<16:
		_ = w.WriteByte(126)
		_, _ = w.Write(binary.BigEndian.AppendUint16(nil, uint16(n)))
	default:
		_ = w.WriteByte(127)
		_, _ = w.Write(binary.BigEndian.AppendUint64(nil, uint64(n)))
	}
	_, _ = w.Write(payload)
}
