package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// flagsFirst puts the flags of a command before its arguments, where the flag
// package looks for them: as in "sluice status web -o json".
func flagsFirst(app *cli.App, args []string) []string {
	if len(args) == 0 {
		return args
	}
	i := 1
	for i < len(args) && strings.HasPrefix(args[i], "-") {
		if args[i] == "--" {
			return args
		}
		i += width(app.Flags, args[i])
	}
	if i >= len(args) {
		return args
	}
	cmd := app.Command(args[i])
	if cmd == nil {
		return args
	}
	out := slices.Clone(args[:i+1])
	var plain []string
	for i++; i < len(args); {
		if args[i] == "--" {
			plain = append(plain, args[i+1:]...)
			break
		}
		if len(args[i]) < 2 || args[i][0] != '-' {
			plain = append(plain, args[i])
			i++
			continue
		}
		n := width(cmd.Flags, args[i])
		if n > len(args)-i {
			return args // its value is missing, which the flag package says
		}
		out = append(out, args[i:i+n]...)
		i += n
	}
	return append(append(out, "--"), plain...)
}

// width is the number of words of a flag: two where its value stands apart.
func width(flags []cli.Flag, word string) int {
	name := strings.TrimLeft(word, "-")
	for _, f := range flags {
		if _, alone := f.(*cli.BoolFlag); !alone && slices.Contains(f.Names(), name) {
			return 2
		}
	}
	return 1
}
