// Package nft keeps the one nftables table through which sluice sends flows to
// backends without a process in between: inet sluice.
package nft
