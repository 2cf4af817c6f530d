// Package alarm reads the packets that a rule of nftables logs to a group
// (nfnetlink_log), to learn who is called while asleep.
package alarm
