// Package config reads sluice's configuration: one TOML file and the files
// conf.d/*.toml beside it.
//
// Everything is strict. An unknown key, a value of the wrong type or out of
// range, an address that two services claim: each is an error that names file,
// line and key, and says what to do. All problems are reported in one pass.
//
// reference.toml lists every key with its meaning and default, minimal.toml
// the few that a service needs. A few rules are not visible there:
//
//   - The main file comes first, then conf.d in the order of the names; names
//     that begin with a dot are skipped. A service stands in one file as a
//     whole; a key of [daemon] may stand in any file, but only once.
//   - A file or a conf.d that every user may write is refused: whoever can
//     write it can start containers as root.
//   - No service at all is a valid configuration.
//   - Durations are Go's ("1m30s"), sizes are binary ("256m" is 256 MiB).
//   - Service names are [a-z0-9][a-z0-9-]*, at most 40 characters, so that
//     container names made of them are valid DNS labels.
package config
