package handover

// Reason is how an attempt ended; its text is a metric label and stays as it is.
type Reason string

const (
	// Done: the connection is a kernel flow. Its socket is closed.
	Done Reason = "handover"

	// The relay reasons: nothing was lost, the socket is as it was and still
	// belongs to the caller.

	Forced     Reason = "relay_forced"      // the configuration says so; never returned by this package
	Loopback   Reason = "relay_loopback"    // client, service or backend on this host's loopback
	Hairpin    Reason = "relay_hairpin"     // client and backend behind the same device: answers would go past this host
	HalfClosed Reason = "relay_half_closed" // the client has closed its side
	Options    Reason = "relay_options"     // the backend does not agree to what the client was told
	Urgent     Reason = "relay_urgent"      // urgent data
	Window     Reason = "relay_window"      // far more data held than the backend takes at once
	Used       Reason = "relay_used"        // bytes were read from or written to the socket before
	Refused    Reason = "relay_refused"     // the backend answered with a reset, or as on another connection
	Timeout    Reason = "relay_timeout"     // the backend did not answer
	Unable     Reason = "relay_error"       // a step failed for a reason of this host; see Result.Err

	// Gone: the client reset the connection while it was held. The socket is closed.
	Gone Reason = "gone"
	// Failed: the attempt broke behind the point of no return; both sides were
	// reset and the socket is closed.
	Failed Reason = "failed"
)

// Relay says whether the caller still owns the connection and has to serve it.
func (r Reason) Relay() bool {
	switch r {
	case Done, Gone, Failed:
		return false
	}
	return true
}
