// Package health tells whether a backend works, by trying it.
//
// [Run] watches one backend with one goroutine and one timer. A backend on its
// way up is tried eagerly, again and again with short pauses, so that no tick
// stands between its first success and its first connection. From then on it
// is tried once per interval; Fall failures in a row make it unhealthy, Rise
// successes in a row healthy again.
//
// A backend that demands a PROXY protocol header gets one before each HTTP
// request. A check of type TCP sends nothing: it takes the connection back
// before the application could see it, let alone ask for a header.
package health
