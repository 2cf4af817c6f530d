// Package control joins the parts of sluice. One goroutine owns every service:
// all that happens comes to it as a message, goes through [policy.Service.Step],
// and what is to be done runs in goroutines that each post one message back.
//
// The owner never blocks. Its mailbox has no bound, because the accept loop
// and the conntrack watcher must not wait for it either; what they can post is
// bounded by what they hold (the one connection of a cold service, a hint per
// draining backend).
//
// The order in which a backend leaves is the order of lines in package policy;
// this package adds what makes it true: a change is reported as mapped only
// when the kernel has acknowledged the transaction and, if the change took a
// backend out, no packet is under way any more that saw the table before it
// (nft.Fence).
package control
