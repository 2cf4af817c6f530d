// Package handover turns an accepted TCP connection into a flow that the kernel
// forwards to a backend, after which no process has any part in it. The client
// notices nothing, and the backend sees the client's own address.
//
// The client has a connection with this host, in which our side began at the
// sequence number s0. The same connection is opened to the backend in the
// client's name; the backend begins at s1. Connection tracking then translates
// the addresses, and adds s0-s1 to what the backend sends. It is what the
// kernel's SYNPROXY does, begun from user space. The steps:
//
//  1. freeze: the client's packets are dropped before anything sees them; its TCP
//     sends them again
//  2. inspect: read numbers, options, windows and received data off the socket
//     (TCP_REPAIR, left again at once)
//  3. replay: send a SYN to the backend with just those options that this host
//     has agreed to, until a SYN-ACK is seen
//  4. compare what the SYN-ACK promises with what the client was told
//  5. inspect again, and replace the tracked connection by one with translation
//     and offset: the commit
//  6. send the first of what the client has sent, and unfreeze
//  7. deliver the rest, until all is acknowledged
//  8. close the socket in repair mode, that is, silently; nudge the client
//
// Nothing is taken from the socket but copies, and everything before the commit
// is undone if it fails: then the socket is as it was, and the connection can be
// relayed. From step 5 on the socket is set to reset the client if the process
// ends, until step 8; before, closing it does that by itself. So a killed process
// leaves no client waiting. The freeze ends by itself after four seconds, and is
// there for speed: what slips through is found at step 8 and delivered.
//
// TCP_SAVE_SYN is not needed: a socket in repair mode knows all that its peer's
// SYN has said, and can be asked more than once.
//
// # Conditions
//
// What is handed over, and what is left to the relay, each row being a test
// (TestConditions and those named):
//
//	client has sent nothing, a line, 60,000 bytes     handover
//	  more than twice the backend's first window      relay_window: the backend's late acknowledgements
//	                                                  would be too old for the client (RFC 5961 §5.2)
//	  from one byte to the next, all the time         handover (TestDribble)
//	  a large upload that goes on                     handover (TestUpload)
//	window scaling off in client or host              handover, without it
//	  off in the backend, or another shift there      relay_options: the client would misread its windows
//	  (fixed receive buffer, other tcp_rmem)
//	SACK off in client or host                        handover, without it
//	  off in the backend                              relay_options
//	timestamps offered, removed by the cold rule      handover, without them
//	  agreed on (rule absent)                         relay_options: they differ by connection
//	ECN agreed on by all                              handover; with accurate ECN relay_options
//	  not by the backend                              relay_options
//	Fast Open, Multipath TCP in the SYN               handover, not repeated to the backend
//	client takes 536 to 8,960                         handover
//	  was told to send more than the backend takes    relay_options: its segments might not fit (MTU
//	                                                  smaller in the backend, or this host's lo)
//	  same, listener told less by TCP_MAXSEG          handover
//	  bridge takes less than the backend says         handover: path MTU discovery, as on any flow
//	bridge-nf-call-iptables 0 and 1                   handover
//	client closed its side                            relay_half_closed
//	client reset                                      gone
//	urgent data                                       relay_urgent
//	bytes read or written by the caller               relay_used
//	client on this host, service address              handover, if the listener's TCP_MAXSEG fits
//	client or service 127.0.0.0/8 or ::1              relay_loopback
//	backend address is this host's                    relay_loopback: no offset is added on lo
//	client and backend behind the same device         relay_hairpin: answers would not come by here
//	backend refuses                                   relay_refused
//	backend has a connection of the same addresses    relay_refused (TestTaken)
//	  or one is on its way there                      relay_refused (TestTwins)
//	backend does not answer within 1.5 s              relay_timeout
//	rules or tracking cannot be changed               relay_error (TestBroken)
//	packets lost between host and backend             handover (TestLoss)
//	backend flooded by other connections              handover (TestFlood)
//	client acts or process is killed at any step      see TestClientActs, TestKilled
//	backend closes or resets at once                  handover (TestBackendEnds)
//	backend reads only when all it says is heard      handover (TestDeafTalker)
//
// # Limits
//
// A flow lives on its tracking entry: "conntrack -F" cuts a connection that was
// handed over, as it does one that SYNPROXY has let in. And if a process is
// killed within the milliseconds between the steps 6 and 8, while what it sent is
// lost as well and the backend has spoken already, the client's reset goes unheard
// and the connection hangs until one side's TCP gives up.
package handover
