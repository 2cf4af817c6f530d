package main

import (
	"bytes"
	"context"
	"html/template"
	"net/http"
	"time"

	"sluice/cmd/internal/control"
)

// page shows people what `sluice status` does: no script, and text for all that
// it says, so that any browser and any reader of screens can do with it.
var page = template.Must(template.New("page").Parse(`<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<meta http-equiv="refresh" content="5">
<title>sluice</title>
<style>
body { font-family: sans-serif; margin: 1em }
table { border-collapse: collapse; margin-bottom: 1em }
caption { text-align: left; font-weight: bold }
th, td { text-align: left; padding: .2em 1em .2em 0; border-bottom: 1px solid }
</style>
</head>
<body>
<main>
<h1>sluice</h1>
{{with .ConfigError}}<p>Configuration not in force: {{.}}</p>
{{end}}{{range .Services}}<h2>{{.Name}}</h2>
<p>{{.Phase}}, {{.Ready}} of {{.Desired}} replicas ready, {{.Flows}} connections, {{.Held}} held, {{.Relaying}} relayed; at{{range .Listen}} {{.}}{{end}}</p>
{{with .LastError}}<p>Last error: {{.}}</p>
{{end}}{{with .Canary}}<p>{{.}}</p>
{{end}}{{if .Backends}}<table>
<caption>Backends of {{.Name}}</caption>
<thead><tr><th scope="col">Name</th><th scope="col">Address</th><th scope="col">State</th><th scope="col">Connections</th></tr></thead>
<tbody>
{{range .Backends}}<tr><th scope="row">{{.Name}}</th><td>{{.Address}}</td><td>{{.State}}{{if .Canary}} (canary){{end}}</td><td>{{.Flows}}</td></tr>
{{end}}</tbody>
</table>
{{end}}{{else}}<p>No services.</p>
{{end}}</main>
<footer><a href="/metrics">Metrics</a></footer>
</body>
</html>
`))

// pageHandler serves it, of what status says.
func pageHandler(status func(context.Context, ...string) (control.Status, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		ctx, cancel := context.WithTimeout(req.Context(), time.Second)
		defer cancel()
		st, err := status(ctx)
		var b bytes.Buffer
		if err == nil {
			err = page.Execute(&b, st)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
		_, _ = w.Write(b.Bytes())
	})
}
