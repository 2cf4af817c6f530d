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
//  1. read events until the socket is empty;
//  2. dump, and take each entry over into the flow table, reading no event;
//  3. read the events that have come since until the socket is empty again, and
//     apply them, as always, on top;
//  4. remove the flows that neither 2 nor 3 has shown.
//
// Claim: afterwards each flow is counted as the kernel has it, if no event was
// lost. The kernel (nf_conntrack_core.c, nf_conntrack_netlink.c) gives these:
//
//   - NEW is sent after an entry is in the table; DESTROY before it leaves it,
//     and after the bit IPS_DYING is set, which dumps show. The entry of the next
//     flow with the same tuple comes only after that. So the events of a tuple
//     are in order: NEW, updates, DESTROY, NEW, and so on.
//   - Each event is absolute: NEW says that a flow is there, an update what state
//     it is in, DESTROY that it is gone. Applied twice or late, the last one wins
//     all the same.
//
// Take one tuple, and the moment t when the dump looks at its bucket. What the
// dump says holds at t (an entry with IPS_DYING is as good as gone). Events that
// were sent after t have not been read by then, as 2 reads none, so 3 reads them
// all. If there are any, the last of them decides, rightly. If there are none,
// the dump's word stands, changed at most by events that were sent between 1 and
// t, which it had already taken into account; these are in order too and end in
// the very state that the dump saw. An entry that the dump did not show and that
// has had no NEW since has been gone since before t; its DESTROY either was read
// in 3, or lost, or never sent, which is what 4 is for. No flow is counted twice,
// since a tuple has one place in the table; the entry's id tells a repeated NEW
// from that of a new flow, and an old DESTROY from that of the present one.
//
// Stale events in 3 must not count a flow as new again: an update can open a
// finished entry again, but not one of which only the dump has said that it is
// finished, for then the update may be older than that.
//
// What is left are moments: an entry is in the table some microseconds before
// its NEW is sent. And an update is lost when its packet is dropped by a rule
// after conntrack has seen it; the flow then counts as live until its end is
// announced, or until the next dump. Both err on the busy side or heal, and a
// dump ([Watcher.Sync], [Conn.Live]) comes before anything that cannot be undone.
//
// When the receive buffer overflows, the next read returns ENOBUFS, once; the
// kernel goes on to drop events until the socket has been emptied. From then on
// the counts are unknown, and the dump that restores them begins after that
// (step 1). If events are lost in step 3 all of it is done again.
//
// # Finished flows
//
// An entry of a TCP connection remains in TIME_WAIT for 120 s, so the Watcher
// looks at updates too, of which a filter in the kernel passes only those that
// end or begin a connection. States are listed as finished, not as live: what is
// not known counts as busy.
package conntrack
