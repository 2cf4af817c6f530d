# The build tags of Podman's bindings: clients only, no C libraries. They stand
# here and in .golangci.yml.
TAGS := remote,containers_image_openpgp,exclude_graphdriver_btrfs

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
PREFIX  ?= /usr/local
UNITDIR ?= /etc/systemd/system

GOLANGCI    := 2.12.2
GOVULNCHECK := 1.8.0

# What is tested, as in make test PKGS=./nft
PKGS ?= ./...

# How long each fuzz target runs, as in make fuzz FUZZTIME=10m
FUZZTIME ?= 30s

# The version is told by VERSION; without -buildvcs=false a build fails where
# git refuses to look at another user's clone.
static := CGO_ENABLED=0 go build -trimpath -buildvcs=false -tags '$(TAGS)' -ldflags '-s -w -X main.version=$(VERSION)'

.PHONY: help deps build demo test soak fuzz lint vuln bench install image install-quadlet clean

help:
	@echo 'make build    bin/sluice, static'
	@echo 'make demo     watch it work: real containers in a sandbox of their own (root)'
	@echo 'make test     vet and all tests with the race detector (root)'
	@echo 'make fuzz     look for inputs that break something, FUZZTIME for each target'
	@echo 'make soak     faults at random, SOAK=10m long; SEED=n repeats a choice (root)'
	@echo 'make bench    measure it on this machine (root)'
	@echo 'make lint     golangci-lint'
	@echo 'make install  to $(PREFIX)/bin, with a systemd unit in $(UNITDIR)'
	@echo 'make install-quadlet  an image and a Quadlet of it instead'
	@echo 'make vuln     govulncheck, if its database can be reached'
	@echo 'make deps     install the programs that are missing; demo, test and bench do so too'

deps:
	@.ci/deps

build:
	$(static) -o bin/sluice ./cmd/sluice

demo: deps build
	@$(static) -o bin/demo ./cmd/demo
	@bin/demo --sluice bin/sluice

bench: build
	@.ci/deps bench
	@$(static) -o bin/bench ./cmd/bench
	@bin/bench --sluice bin/sluice

# Two packages at a time: each runs a Podman of its own and many tests at once.
# Results are not cached, for they depend on the kernel and on Podman too.
test: deps
	CGO_ENABLED=1 go vet -tags '$(TAGS)' $(PKGS)
	CGO_ENABLED=1 go test -race -count=1 -p 2 -timeout 15m -tags '$(TAGS)' $(PKGS)
	@go test -count=1 -cover ./policy | grep -F 'coverage: 100.0%' || { \
		echo 'policy: a statement has no test: go test -coverprofile=c ./policy; go tool cover -html=c' >&2; exit 1; }

SOAK ?= 10m
SEED ?=
soak: deps
	SOAK='$(SOAK)' SEED='$(SEED)' CGO_ENABLED=1 go test -race -count=1 -v -timeout 24h -run 'TestSoak$$' -tags '$(TAGS)' ./cmd/sluice

# Every fuzz target in turn. What one finds is left in its testdata/fuzz, where
# go test runs it from then on. Without a limit to making inputs smaller, which
# takes up to a minute for each, a short run does nothing else. And Go may fail at
# the end of the time having found nothing (go.dev/issue/75804, mended in 1.27):
# what has been found fails again.
fuzz: deps
	@grep -rnoE --include='*_test.go' '^func Fuzz[A-Za-z0-9]+' . | sed -E 's|/[^/]*:[0-9]+:func | |' | sort | \
	while read -r dir name; do \
		echo "$$dir $$name"; \
		go test -tags '$(TAGS)' -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1s "$$dir" </dev/null || \
		go test -tags '$(TAGS)' -run "^$$name\$$" -failfast -count 10 "$$dir" </dev/null || exit 1; \
	done

lint: bin/golangci-lint-$(GOLANGCI)
	$< run

bin/golangci-lint-$(GOLANGCI):
	GOBIN='$(CURDIR)/bin' go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v$(GOLANGCI)
	mv bin/golangci-lint $@

install: build
	install -D -m 0755 bin/sluice '$(DESTDIR)$(PREFIX)/bin/sluice'
	install -d -m 0755 '$(DESTDIR)$(UNITDIR)'
	sed 's|@BINDIR@|$(PREFIX)/bin|' cmd/sluice/sluice.service > '$(DESTDIR)$(UNITDIR)/sluice.service'
	install -d -m 0755 '$(DESTDIR)/etc/sluice/conf.d'

# sluice as a container of its own, for systems where nothing is installed.
image: build
	podman build -q -t localhost/sluice:latest -f cmd/sluice/Containerfile bin

install-quadlet: image
	install -d -m 0755 '$(DESTDIR)/etc/sluice/conf.d'
	install -D -m 0644 cmd/sluice/seccomp.json '$(DESTDIR)/etc/sluice/seccomp.json'
	install -D -m 0644 cmd/sluice/sluice.container '$(DESTDIR)/etc/containers/systemd/sluice.container'

vuln:
	go run golang.org/x/vuln/cmd/govulncheck@v$(GOVULNCHECK) -tags '$(TAGS)' ./...

clean:
	rm -rf bin
