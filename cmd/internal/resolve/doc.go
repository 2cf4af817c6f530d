// Package resolve follows a DNS SRV name (RFC 2782).
//
// [Watch] asks for the records of the name and for the addresses of their
// targets, asks again when the first of them has outlived its TTL, and tells of
// changes. An answer stays in force until there is another: to lose the DNS is
// no reason to lose the backends, which are health-checked anyway.
package resolve
