package config

import (
	"strings"
	"testing"
)

// web is a good service of five lines, which the table below spoils.
const web = `[service.web]
listen = ["192.0.2.10:80/tcp"]
[service.web.container]
image = "localhost/web:1"
port = 80
`

// wrong returns files that must be refused, each with what is reported. In
// front of every line of want stands "sluice.toml:".
func wrong() map[string]struct{ text, want string } {
	return map[string]struct{ text, want string }{
		// The file as such.
		"syntax":               {"[service.web\n", `1: not valid TOML: expected ']' to close table name`},
		"second key":           {web + "image = \"localhost/b\"\n", `6: not valid TOML: key image is already defined`},
		"second table":         {web + "[service.web.container]\n", `6: not valid TOML: table container already exists`},
		"unclosed string":      {web + "[service.web.scale]\nidle = \"60s\n", `7: not valid TOML: basic strings cannot have new lines`},
		"not UTF-8":            {"[daemon]\nadmin = \"/\xff\"\n", `2: not valid TOML: invalid UTF-8 character in basic string`},
		"service not a table":  {"service = 3\n", `1: service: must be a table, got an integer: write [service]`},
		"service is an array":  {"[[service]]\n", `1: service: must be a table, got an array: write [service]`},
		"one service no table": {"[service]\nweb = 1\n", `2: service.web: must be a table, got an integer: write [service.web]`},
		"section no table":     {web + "[service.web.scale.min]\n", `6: service.web.scale.min: must be an integer, got a table`},

		// Unknown keys.
		"unknown near":      {web + "[service.web.scale]\nmaxx = 2\n", `7: service.web.scale.maxx: unknown key: did you mean "max"?`},
		"unknown swapped":   {web + "[service.web.health]\nintreval = \"1s\"\n", `7: service.web.health.intreval: unknown key: did you mean "interval"?`},
		"unknown elsewhere": {web + "[service.web.scale]\nimage = \"x\"\n", `7: service.web.scale.image: unknown key: did you mean service.web.container.image?`},
		"unknown section":   {web + "scale.sleep = \"stop\"\n", `6: service.web.container.scale: unknown key: did you mean service.web.scale?`},
		"unknown top":       {"[services.web]\n", `1: services: unknown key: did you mean "service"?`},
		"unknown daemon":    {"metrics = \"\"\n", `1: metrics: unknown key: did you mean daemon.metrics?`},
		"unknown quoted":    {"[daemon]\n\"log level\" = \"info\"\n", `2: daemon."log level": unknown key: did you mean "log_level"?`},
		"unknown far":       {web + "[service.web.tls]\n", `6: service.web.tls: unknown key: remove it, or see the reference for the keys of [service.web]`},
		"upper case":        {web + "[service.web.scale]\nMax = 2\n", `7: service.web.scale.Max: unknown key: did you mean "max"?`},

		// Daemon.
		"podman tcp":      {"[daemon]\npodman = \"tcp://127.0.0.1:1\"\n", `2: daemon.podman: must be unix:// and an absolute path, got "tcp://127.0.0.1:1"`},
		"podman relative": {"[daemon]\npodman = \"unix://podman.sock\"\n", `2: daemon.podman: must be unix:// and an absolute path, got "unix://podman.sock"`},
		"admin relative":  {"[daemon]\nadmin = \"admin.sock\"\n", `2: daemon.admin: must be an absolute path, got "admin.sock"`},
		"admin long":      {"[daemon]\nadmin = \"/" + strings.Repeat("a", 107) + "\"\n", `2: daemon.admin: must be at most 107 bytes long for a unix socket, got 108`},
		"metrics no port": {"[daemon]\nmetrics = \"127.0.0.1\"\n", `2: daemon.metrics: must be HOST:PORT or "", got "127.0.0.1"`},
		"metrics port":    {"[daemon]\nmetrics = \"127.0.0.1:http\"\n", `2: daemon.metrics: port must be 1 to 65535, got "http"`},
		"log level":       {"[daemon]\nlog_level = \"warning\"\n", `2: daemon.log_level: must be "debug", "info", "warn" or "error", got "warning"`},
		"log format":      {"[daemon]\nlog_format = \"jsno\"\n", `2: daemon.log_format: must be "auto", "console" or "json", got "jsno": did you mean "json"?`},
		"wrong type":      {"[daemon]\nlog_level = 3\n", `2: daemon.log_level: must be a string, got an integer: put it in quotes`},

		// Names.
		"name upper case": {"[service.Web]\n", `1: service.Web: service names are a-z, 0-9 and -, not first a -, got "Web"`},
		"name dash":       {"[service.-web]\n", `1: service.-web: service names are a-z, 0-9 and -, not first a -, got "-web"`},
		"name space":      {"[service.\"a b\"]\n", `1: service."a b": service names are a-z, 0-9 and -, not first a -, got "a b"`},
		"name empty":      {"[service.\"\"]\n", `1: service."": service names are a-z, 0-9 and -, not first a -, got ""`},
		"name long":       {"[service." + strings.Repeat("a", 41) + "]\n", `1: service.` + strings.Repeat("a", 41) + `: service names are at most 40 characters long, got 41`},

		// What must be there.
		"nothing": {"\n[service.web]\n", `2: service.web.container.image: is missing: name the image that replicas are made of
2: service.web.container.port: is missing: give the port on which the application listens inside the container
2: service.web.listen: is missing: give at least one address such as "192.0.2.10:80/tcp"`},
		"no port":      {"[service.web]\nlisten = [\"192.0.2.1:80/tcp\"]\n[service.web.container]\nimage = \"localhost/a\"\n", `3: service.web.container.port: is missing: give the port on which the application listens inside the container`},
		"empty listen": {strings.Replace(web, `["192.0.2.10:80/tcp"]`, "[]", 1), `2: service.web.listen: is empty: give at least one address such as "192.0.2.10:80/tcp"`},

		// Addresses.
		"listen string":    {strings.Replace(web, `["192.0.2.10:80/tcp"]`, `"192.0.2.10:80/tcp"`, 1), `2: service.web.listen: must be an array of strings, got a string: put it in [ ]`},
		"listen integers":  {strings.Replace(web, `["192.0.2.10:80/tcp"]`, "[\n80]", 1), `3: service.web.listen: must be an array of strings, got an integer in it`},
		"listen no proto":  listen("192.0.2.10:80", `"192.0.2.10:80" has no protocol: write "192.0.2.10:80/tcp"`),
		"listen sctp":      listen("192.0.2.10:80/sctp", `"192.0.2.10:80/sctp": protocol must be tcp or udp, got "sctp"`),
		"listen no port":   listen("192.0.2.10/tcp", `"192.0.2.10/tcp" is no address: write ADDR:PORT/tcp, an IPv6 address in [ ]`),
		"listen port 0":    listen("192.0.2.10:0/tcp", `"192.0.2.10:0/tcp": port must be 1 to 65535, got "0"`),
		"listen port high": listen("192.0.2.10:65536/tcp", `"192.0.2.10:65536/tcp": port must be 1 to 65535, got "65536"`),
		"listen name":      listen("example.org:80/tcp", `"example.org:80/tcp": "example.org" is no IP address`),
		"listen brackets":  listen("2001:db8::1:80/tcp", `"2001:db8::1:80/tcp" is no address: write ADDR:PORT/tcp, an IPv6 address in [ ]`),
		"listen zeros":     listen("0.0.0.0:80/tcp", `"0.0.0.0:80/tcp": write ":80/tcp" for every local address`),
		"listen multicast": listen("224.0.0.1:80/tcp", `"224.0.0.1:80/tcp": 224.0.0.1 is no unicast address`),
		"listen zone":      listen("[fe80::1%eth0]:80/tcp", `"[fe80::1%eth0]:80/tcp": link-local IPv6 addresses are not possible`),
		"listen mapped":    listen("[::ffff:192.0.2.1]:80/tcp", `"[::ffff:192.0.2.1]:80/tcp": write "192.0.2.1" instead of the mapped address`),
		"listen twice":     {strings.Replace(web, `"]`, "\",\n\"192.0.2.10:80/tcp\"]", 1), `3: service.web.listen: "192.0.2.10:80/tcp" is listed twice`},
		"clash":            {web + service("a", "192.0.2.10:80/tcp"), `7: service.a.listen: "192.0.2.10:80/tcp" clashes with "192.0.2.10:80/tcp" of service.web (sluice.toml:2): change the address or the port of one`},
		"clash wildcard":   {web + service("a", ":80/tcp"), `7: service.a.listen: ":80/tcp" clashes with "192.0.2.10:80/tcp" of service.web (sluice.toml:2): change the address or the port of one`},
		"clash metrics":    {web + service("a", "127.0.0.1:9464/tcp"), `7: service.a.listen: "127.0.0.1:9464/tcp" clashes with daemon.metrics ("127.0.0.1:9464"): change the port of one`},

		// Container.
		"image short":      image("nginx", `"nginx" does not name its registry: write REGISTRY/NAME:TAG, or localhost/NAME:TAG for a local image`),
		"image user":       image("library/nginx:1", `"library/nginx:1" does not name its registry: write REGISTRY/NAME:TAG, or localhost/NAME:TAG for a local image`),
		"image upper case": image("localhost/Web", `"localhost/Web" is no image name: repository name must be lowercase`),
		"image empty":      image("", `"" is no image name: repository name must have at least one component`),
		"image digest":     image("sha256:"+strings.Repeat("a", 64), `"sha256:`+strings.Repeat("a", 64)+`" does not name its registry: write REGISTRY/NAME:TAG, or localhost/NAME:TAG for a local image`),
		"port 0":           {strings.Replace(web, "port = 80", "port = 0", 1), `5: service.web.container.port: must be at least 1, got 0`},
		"port high":        {strings.Replace(web, "port = 80", "port = 65_536", 1), `5: service.web.container.port: must be at most 65535, got 65536`},
		"port string":      {strings.Replace(web, "port = 80", "port = \"80\"", 1), `5: service.web.container.port: must be an integer, got a string`},
		"command string":   {web + "command = \"serve\"\n", `6: service.web.container.command: must be an array of strings, got a string: put it in [ ]`},
		"env name":         {web + "env = { \"A=B\" = \"1\" }\n", `6: service.web.container.env."A=B": environment variables have no =, space or control character in their name, got "A=B"`},
		"env integer":      {web + "[service.web.container.env]\n\nPORT = 80\n", `8: service.web.container.env.PORT: must be a string, got an integer: put it in quotes`},
		"volume one part":  {web + "volumes = [\"/data\"]\n", `6: service.web.container.volumes: "/data": write SOURCE:TARGET or SOURCE:TARGET:OPTIONS`},
		"volume relative":  {web + "volumes = [\n\"a:/a\",\n\"./data:/data\"]\n", `8: service.web.container.volumes: "./data:/data": source must be an absolute path or the name of a volume, got "./data"`},
		"volume target":    {web + "volumes = [\"/data:data\"]\n", `6: service.web.container.volumes: "/data:data": target must be an absolute path below /, got "data"`},
		"volume option":    {web + "volumes = [\"/data:/data:readonly\"]\n", `6: service.web.container.volumes: "/data:/data:readonly": unknown option "readonly"`},
		"volume options":   {web + "volumes = [\"/data:/data:ro,rw\"]\n", `6: service.web.container.volumes: "/data:/data:ro,rw": options "ro" and "rw" exclude each other`},
		"volume twice":     {web + "volumes = [\"/a:/c\", \"/b:/c:ro\"]\n", `6: service.web.container.volumes: "/b:/c:ro": target /c is taken by "/a:/c"`},
		"network host":     {web + "network = \"host\"\n", `6: service.web.container.network: "host" gives replicas no address of their own: name a bridge network of Podman`},
		"network mode":     {web + "network = \"container:db\"\n", `6: service.web.container.network: "container:db" is no name of a Podman network`},
		"memory unit":      {web + "memory = \"256x\"\n", `6: service.web.container.memory: must be a size such as "256m" or "2g", got "256x"`},
		"memory no unit":   {web + "memory = \"256\"\n", `6: service.web.container.memory: must be at least 4m, got "256" (256 bytes)`},
		"memory overflow":  {web + "memory = \"99999999999p\"\n", `6: service.web.container.memory: must be a size such as "256m" or "2g", got "99999999999p"`},
		"memory integer":   {web + "memory = 256\n", `6: service.web.container.memory: must be a string, got an integer: put it in quotes`},
		"cpus negative":    {web + "cpus = -1\n", `6: service.web.container.cpus: must be at least 0, got -1`},
		"cpus nan":         {web + "cpus = nan\n", `6: service.web.container.cpus: must be a finite number, got nan`},
		"cpus string":      {web + "cpus = \"1\"\n", `6: service.web.container.cpus: must be a number, got a string`},
		"pull":             {web + "pull = \"allways\"\n", `6: service.web.container.pull: must be "missing", "always", "never" or "newer", got "allways": did you mean "always"?`},
		"stop timeout":     {web + "stop_timeout = \"1500ms\"\n", `6: service.web.container.stop_timeout: must be whole seconds, got "1500ms"`},

		// Scale.
		"max below min":       {web + "[service.web.scale]\nmin = 2\nmax = 1\n", `8: service.web.scale.max: must be at least min (2), got 1: raise max or lower min`},
		"min above default":   {web + "[service.web.scale]\nmin = 5\n", `7: service.web.scale.min: must be at most max (4, the default), got 5: set max`},
		"min negative":        {web + "[service.web.scale]\nmin = -1\n", `7: service.web.scale.min: must be at least 0, got -1`},
		"max zero":            {web + "[service.web.scale]\nmax = 0\n", `7: service.web.scale.max: must be at least 1, got 0`},
		"max float":           {web + "[service.web.scale]\nmax = 2.0\n", `7: service.web.scale.max: must be an integer, got a float`},
		"max huge":            {web + "[service.web.scale]\nmax = 4000\n", `7: service.web.scale.max: must be at most 1024, got 4000`},
		"no target":           {web + "[service.web.scale]\nflows_per_replica = 0\n", `7: service.web.scale.flows_per_replica: must be at least 1 as long as rate_per_replica is not set`},
		"rate negative":       {web + "[service.web.scale]\nrate_per_replica = -0.5\n", `7: service.web.scale.rate_per_replica: must be at least 0, got -0.5`},
		"utilization percent": {web + "[service.web.scale]\nutilization = 70\n", `7: service.web.scale.utilization: must be at most 1, got 70`},
		"utilization zero":    {web + "[service.web.scale]\nutilization = 0.0\n", `7: service.web.scale.utilization: must be more than 0, got 0.0`},
		"panic above stable":  {web + "[service.web.scale]\nstable_window = \"5s\"\n", `7: service.web.scale.stable_window: must be at least panic_window (6s, the default), got 5s: set panic_window`},
		"panic window":        {web + "[service.web.scale]\npanic_window = \"2m\"\n", `7: service.web.scale.panic_window: must be at most stable_window (1m0s), got 2m0s`},
		"idle zero":           {web + "[service.web.scale]\nidle = \"0s\"\n", `7: service.web.scale.idle: must be more than 0s, got "0s"`},
		"idle no unit":        {web + "[service.web.scale]\nidle = \"60\"\n", `7: service.web.scale.idle: must be a duration such as "30s" or "1m30s", got "60"`},
		"idle integer":        {web + "[service.web.scale]\nidle = 60\n", `7: service.web.scale.idle: must be a duration in quotes such as "30s", got an integer`},
		"idle negative":       {web + "[service.web.scale]\nidle = \"-1s\"\n", `7: service.web.scale.idle: must not be negative, got "-1s"`},
		"sleep":               {web + "[service.web.scale]\nsleep = \"deep\"\n", `7: service.web.scale.sleep: must be "stop", "prepared" or "pause", got "deep"`},
		"stop after stop":     {web + "[service.web.scale]\nstop_after = \"1h\"\n", `7: service.web.scale.stop_after: needs sleep = "prepared" or "pause": with "stop" nothing is left to be stopped`},

		// Start, health, drain.
		"start timeout":    {web + "[service.web.start]\ntimeout = \"0s\"\n", `7: service.web.start.timeout: must be more than 0s, got "0s"`},
		"backlog zero":     {web + "[service.web.start]\nbacklog = 0\n", `7: service.web.start.backlog: must be at least 1, got 0`},
		"backlog high":     {web + "[service.web.start]\nbacklog = 65536\n", `7: service.web.start.backlog: must be at most 65535, got 65536`},
		"health type":      {web + "[service.web.health]\ntype = \"https\"\n", `7: service.web.health.type: must be "tcp", "http", "exec" or "none", got "https": did you mean "http"?`},
		"health path":      {web + "[service.web.health]\ntype = \"http\"\npath = \"health\"\n", `8: service.web.health.path: must begin with / and hold no space, # or non-ASCII character, got "health"`},
		"health path tcp":  {web + "[service.web.health]\npath = \"/health\"\n", `7: service.web.health.path: is only used by http: set type = "http" or remove path`},
		"health no exec":   {web + "[service.web.health]\ntype = \"exec\"\n", `6: service.web.health.command: is missing: exec needs a program to run inside the container`},
		"health exec tcp":  {web + "[service.web.health]\ncommand = [\"true\"]\n", `7: service.web.health.command: is only used by exec: set type = "exec" or remove command`},
		"health interval":  {web + "[service.web.health]\ninterval = \"0s\"\n", `7: service.web.health.interval: must be more than 0s, got "0s"`},
		"health timeout":   {web + "[service.web.health]\ntimeout = \"1 s\"\n", `7: service.web.health.timeout: must be a duration such as "30s" or "1m30s", got "1 s"`},
		"health rise":      {web + "[service.web.health]\nrise = 0\n", `7: service.web.health.rise: must be at least 1, got 0`},
		"health fall":      {web + "[service.web.health]\nfall = 0\n", `7: service.web.health.fall: must be at least 1, got 0`},
		"drain timeout":    {web + "[service.web.drain]\ntimeout = \"forever\"\n", `7: service.web.drain.timeout: must be a duration such as "30s" or "1m30s", got "forever"`},
		"affinity":         {strings.Replace(web, "[service.web.container]", "affinity = \"-5m\"\n[service.web.container]", 1), `3: service.web.affinity: must not be negative, got "-5m"`},
		"balance":          {strings.Replace(web, "[service.web.container]", "balance = \"roundrobin\"\n[service.web.container]", 1), `3: service.web.balance: must be "round-robin", "random", "least-connections", "source-hash" or "maglev", got "roundrobin": did you mean "round-robin"?`},
		"handover":         {strings.Replace(web, "[service.web.container]", "handover = \"never\"\n[service.web.container]", 1), `3: service.web.handover: must be "auto" or "relay", got "never"`},
		"allow":            {strings.Replace(web, "[service.web.container]", "allow = [\"192.0.2.1/24\"]\n[service.web.container]", 1), `3: service.web.allow: "192.0.2.1/24" has bits set beyond the prefix: write "192.0.2.0/24"`},
		"affinity long":    of("affinity = \"168h0m1s\"", `3: service.web.affinity: must be at most 168h0m0s, got 168h0m1s`),
		"flows per client": of("max_flows_per_client = 10_001", `3: service.web.max_flows_per_client: must be at most 10000, got 10001`),
		"new per client":   of("max_new_per_second_per_client = 10_001", `3: service.web.max_new_per_second_per_client: must be at most 10000, got 10001`),
		"new per second":   of("max_new_per_second = 1_000_001", `3: service.web.max_new_per_second: must be at most 1000000, got 1000001`),
		"proxy of UDP":     {strings.Replace(web, `"]`, "\", \"192.0.2.10:80/udp\"]\nforward = \"proxy\"", 1), `3: service.web.forward: only TCP can be relayed, and this service listens at UDP: make two services of it`},
		"proxy balance":    of("forward = \"proxy\"\nbalance = \"maglev\"", `4: service.web.balance: has no effect with forward = "proxy", which takes the replica with the fewest connections for its weight: remove it`),
		"proxy affinity":   of("forward = \"proxy\"\naffinity = \"1m\"", `4: service.web.affinity: has no effect with forward = "proxy", which takes the replica with the fewest connections for its weight: remove it`),
		"header of UDP":    {strings.Replace(web, "tcp\"]", "udp\"]\nproxy_protocol = \"v1\"", 1), `3: service.web.proxy_protocol: goes before TCP connections, and this service listens at UDP alone: remove it`},
		"relay of UDP":     {strings.Replace(web, "tcp\"]", "udp\"]\nhandover = \"relay\"", 1), `3: service.web.handover: is about TCP connections, and this service listens at UDP alone: remove it`},
		"priority alone":   {web + "priority = 1\n", `6: service.web.container.priority: is one among backends, and this service has none: remove it, or add [[service.web.backend]]`},
		"scale of backends": {"[service.db]\nlisten = [\"192.0.2.1:5432/tcp\"]\n[[service.db.backend]]\naddress = \"10.0.0.1:1\"\n[service.db.scale]\nmin = 1\n",
			`5: service.db.scale: is about replicas, and this service has no container: remove it`},
		"limit negative": {strings.Replace(web, "[service.web.container]", "max_flows = -1\n[service.web.container]", 1), `3: service.web.max_flows: must be at least 0, got -1`},
		"canary percent": {web + "[service.web.canary]\npercent = 101\ncontainer = { image = \"localhost/w:2\", port = 1 }\n",
			`7: service.web.canary.percent: must be at most 100, got 101`},
		"canary nothing":  {web + "[service.web.canary]\npercent = 5\n", `6: service.web.canary.container: is missing: say in [service.web.canary.container] what is to be tried, such as another image`},
		"canary priority": {web + "[service.web.canary.container]\nimage = \"localhost/w:2\"\npriority = 1\n", `8: service.web.canary.container.priority: is that of the service's container: remove it`},
		"canary image":    {web + "[service.web.canary.container]\nimage = \"w\"\n", `7: service.web.canary.container.image: "w" does not name its registry: write REGISTRY/NAME:TAG, or localhost/NAME:TAG for a local image`},
		"canary of backends": {"[service.db]\nlisten = [\"192.0.2.1:5432/tcp\"]\n[[service.db.backend]]\naddress = \"10.0.0.1:1\"\n[service.db.canary.container]\nimage = \"localhost/w:2\"\n",
			`5: service.db.canary: needs a [service.db.container] that it can take the place of`},
		"state":            {"[daemon]\nstate = \"var\"\n", `2: daemon.state: must be an absolute path below /, got "var"`},
		"backend no table": {web + "[service.web.backend]\naddress = \"10.0.0.1:1\"\n", `6: service.web.backend: must be an array of tables, got a table: write [[service.web.backend]]`},
		"backend address": {"[[service.db.backend]]\naddress = \"db:5432\"\n[service.db]\nlisten = [\"192.0.2.1:5432/tcp\"]\n",
			`2: service.db.backend[0].address: "db:5432": "db" is no IP address: for a name, use srv`},
		"backend nothing": {web + "[[service.web.backend]]\nweight = 1\n",
			`6: service.web.backend[0]: needs address or srv`},
		"backend srv": {web + "[[service.web.backend]]\nsrv = \"db.example.org\"\n",
			`7: service.web.backend[0].srv: must be like "_pg._tcp.example.org", got "db.example.org"`},

		"several at once": {web + "prot = 1\npull = 1\n[service.web.drain]\ntimeout = 5\n",
			`6: service.web.container.prot: unknown key: did you mean "port"?
7: service.web.container.pull: must be a string, got an integer: put it in quotes
9: service.web.drain.timeout: must be a duration in quotes such as "30s", got an integer`},
	}
}

// of is web with a line more, the third.
func of(line, want string) struct{ text, want string } {
	return struct{ text, want string }{strings.Replace(web, "[service.web.container]", line+"\n[service.web.container]", 1), want}
}

func listen(addr, want string) struct{ text, want string } {
	return struct{ text, want string }{strings.Replace(web, "192.0.2.10:80/tcp", addr, 1), "2: service.web.listen: " + want}
}

func image(name, want string) struct{ text, want string } {
	return struct{ text, want string }{strings.Replace(web, "localhost/web:1", name, 1), "4: service.web.container.image: " + want}
}

func TestWrong(t *testing.T) {
	t.Parallel()
	for name, w := range wrong() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want := "sluice.toml:" + strings.ReplaceAll(w.want, "\n", "\nsluice.toml:")
			if _, got := loadText(t, map[string]string{"sluice.toml": w.text}); got != want {
				t.Errorf("%s\n got %s\nwant %s", w.text, got, want)
			}
		})
	}
}
