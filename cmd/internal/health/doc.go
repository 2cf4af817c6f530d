// Package health tells whether backends work, by trying them.
//
// A [Pool] tries any number of them, and a backend that is not being tried
// costs a few hundred bytes and no goroutine. One on its way up is tried
// eagerly, again and again with short pauses, so that no tick stands between
// its first success and its first connection. From then on it is tried once per
// interval; Fall failures in a row make it unhealthy, Rise successes in a row
// healthy again.
//
// When thousands are to be tried at the same moment they are taken in turn, a
// bounded number at a time; those that do not answer hold up nobody. A backend
// that somebody waits for is never made to wait.
//
// A backend that demands a PROXY protocol header gets one before each HTTP
// request. A check of type TCP sends nothing: it takes the connection back
// before the application could see it, let alone ask for a header.
package health
