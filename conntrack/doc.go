// Package conntrack counts, lists, removes and creates entries of the kernel's
// connection tracking table over nfnetlink, for those who have marked their
// flows with a ct mark of their own.
//
// [Watcher] counts the live flows of each [Backend]. [Conn] dumps the table
// ([Conn.Snapshot], [Conn.Live]), removes entries, and creates them with
// destination NAT and sequence offsets. [Tune] sets what the kernel needs for it.
//
// # Events are hints, the dump is the truth
//
// A dump is not a picture of one moment: the kernel visits bucket by bucket, and
// events go on meanwhile. The Watcher merges both like this, in one goroutine:
//
//  1. read events until the socket is empty; call this moment S;
//  2. receive a part of the dump;
//  3. read events until the socket is empty, and apply them; call this D;
//  4. take the entries of the part over, except those whose tuple or very entry
//     an event has been about since S; repeat from 2 until the dump ends;
//  5. read events until the socket is empty; remove the flows that neither an
//     event since S nor the dump has shown.
//
// Claim: afterwards each flow is counted as the kernel has it, if no event was
// lost since S. The kernel (nf_conntrack_core.c, nf_conntrack_netlink.c) gives:
//
//   - NEW is sent after an entry is in the table; DESTROY before it leaves it,
//     and after the bit IPS_DYING is set, which dumps show. The entry of the next
//     flow with the same tuple comes only after that. So the events of a tuple
//     are in order: NEW, updates, DESTROY, NEW, and so on.
//   - Each event is absolute: NEW says that a flow is there, an update what state
//     it is in, DESTROY that it is gone. Seen twice it does no harm.
//
// Take one tuple, and the moment t when the dump looks at its bucket: S < t < D.
// If an event about it was read between S and D, the flow table already shows
// what the last of them said. The dump may be older than that, and is ignored.
// If there was none, then nothing happened to the tuple between S and D, because
// all events sent before D have been read; what the dump saw at t still holds at
// D, and overrides whatever the table says. From D on events carry on as always.
// If the dump does not show the tuple, it had no entry at t; if no event has made
// one since S it has none now, and its DESTROY was lost or never sent. No flow is
// counted twice, since a tuple has one place in the table; the entry's id tells a
// repeated NEW from that of another flow, and an old DESTROY from the present
// one's. Without loss the events alone are exact and the dump changes nothing,
// which the model in the tests checks, for New and bytes as well as for Live.
//
// What is left are moments: an entry is in the table, or in its new state, some
// microseconds before the event is sent. A dump may see that first; the event
// then repeats it. And an update is lost when a rule drops its packet after
// conntrack has seen it; the flow counts as live until its end is announced, or
// until the next dump. A caller takes a dump ([Watcher.Sync], [Conn.Live]) before
// anything that cannot be undone.
//
// When the receive buffer overflows, the next read returns ENOBUFS, once; the
// kernel goes on to drop events until the socket has been emptied. From then on
// the counts are unknown, and the dump that restores them begins after that
// (step 1). If events are lost in steps 2 to 5 all of it is done again.
//
// # Bytes and packets
//
// The kernel tells what a flow has carried in dumps and with its DESTROY, in no
// other event. Both are totals of the flow, of which the Watcher adds what is
// more than when it last looked. So a sum is exact for each flow whose end was
// announced, and it is for all others as of the last dump. A TCP entry remains
// for 120 s after the last FIN ([Watcher.Sync] and [Watcher.Refresh] see it
// there), but a removed backend's entries are deleted, which announces them.
//
// A flow that is older than the Watcher is counted from its first dump on: what
// it carried earlier was another Watcher's to count. If events are lost, what a
// flow carried after the last dump is lost with its DESTROY; the entries of TCP
// mostly outlive the loss, and the dump that follows tells all of it. Sums never
// fall, and nothing is counted twice, with or without loss.
//
// # Finished flows
//
// An entry of a TCP connection remains in TIME_WAIT for 120 s, so the Watcher
// looks at updates too, of which a filter in the kernel passes only those that
// may end or begin a connection. States are listed as finished, not as live: what is
// not known counts as busy.
package conntrack
