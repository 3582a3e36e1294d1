package server

// This file reads a machine's apt sources to learn where it gets Debian from. It only reads:
// what is fetched from there, is fetch.go's affair.

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// An archive is one entry of the apt sources that carries the machine's own release.
type archive struct {
	uris    string
	suite   string
	options []string // lines such as "Signed-By: ...", kept as they are
}

// stanza is the archive as a file for sources.list.d.
func (a archive) stanza() string {
	return fmt.Sprintf("Types: deb\nURIs: %s\nSuites: %s\nComponents: main\n%s\n",
		a.uris, a.suite, strings.Join(a.options, "\n"))
}

// debianArchives returns the entries that may be the Debian archive, likeliest first: those
// which have the machine's release as a suite and the component main. Vendors' repositories
// may look the same, which shows only when apt finds nothing there.
func debianArchives(root string) ([]archive, error) {
	release, err := osRelease(filepath.Join(root, "etc/os-release"))
	if err != nil {
		return nil, err
	}
	if release["ID"] != "debian" {
		return nil, fmt.Errorf("this is no Debian but %q", release["ID"])
	}
	// Where Debian's own installer and images put theirs comes first.
	etc := filepath.Join(root, "etc/apt")
	files := []string{filepath.Join(etc, "sources.list"), filepath.Join(etc, "sources.list.d/debian.sources")}
	for _, pattern := range []string{"*.sources", "*.list"} {
		more, _ := filepath.Glob(filepath.Join(etc, "sources.list.d", pattern))
		for _, f := range more {
			if !slices.Contains(files, f) {
				files = append(files, f)
			}
		}
	}
	suites := []string{release["VERSION_CODENAME"], "stable", "testing", "sid", "unstable"}
	var found []archive
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // as for apt, one file that is missing is no error
		}
		parse := parseStanzas
		if filepath.Ext(file) == ".list" {
			parse = parseLines
		}
		for _, e := range parse(string(text)) {
			i := slices.IndexFunc(e.suites, func(s string) bool { return slices.Contains(suites, s) })
			if i >= 0 && slices.Contains(e.components, "main") {
				e.archive.suite = e.suites[i]
				found = append(found, e.archive)
			}
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("no apt source of this machine has the suite %q and the component main", suites[0])
	}
	return found, nil
}

// An entry is an archive with all its suites and components.
type entry struct {
	archive
	suites, components []string
}

// parseStanzas reads the deb822 format of *.sources.
func parseStanzas(text string) (entries []entry) {
	for stanza := range strings.SplitSeq(dropComments(text)+"\n", "\n\n") {
		var e entry
		deb, enabled := false, true
		for _, field := range fields(stanza) {
			key, value, _ := strings.Cut(field, ":")
			value = strings.TrimSpace(value)
			switch strings.ToLower(key) {
			case "types":
				deb = slices.Contains(strings.Fields(value), "deb")
			case "uris":
				e.uris = strings.Join(strings.Fields(value), " ")
			case "suites":
				e.suites = strings.Fields(value)
			case "components":
				e.components = strings.Fields(value)
			case "enabled":
				enabled = !strings.EqualFold(value, "no")
			case "architectures", "languages", "targets", "x-repolib-name":
				// Ours are apt's defaults.
			default:
				e.options = append(e.options, field)
			}
		}
		if deb && enabled {
			entries = append(entries, e)
		}
	}
	return entries
}

// dropComments drops the lines that are comments, which may stand even within a field.
func dropComments(text string) string {
	lines := strings.Split(text, "\n")
	lines = slices.DeleteFunc(lines, func(l string) bool { return strings.HasPrefix(l, "#") })
	for i, l := range lines {
		lines[i] = strings.TrimRight(l, " \t\r")
	}
	return strings.Join(lines, "\n")
}

// fields splits a stanza into its fields, each with its continuation lines.
func fields(stanza string) (fields []string) {
	for line := range strings.SplitSeq(stanza, "\n") {
		switch {
		case line == "":
		case strings.HasPrefix(line, " ") || strings.HasPrefix(line, "\t"):
			if n := len(fields); n > 0 {
				fields[n-1] += "\n" + line
			}
		default:
			fields = append(fields, line)
		}
	}
	return fields
}

// parseLines reads the one-line format of sources.list and *.list:
// deb [ option=value ... ] uri suite component ...
func parseLines(text string) (entries []entry) {
	for line := range strings.SplitSeq(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		rest, ok := strings.CutPrefix(strings.Join(strings.Fields(line), " "), "deb ")
		if !ok {
			continue
		}
		var e entry
		if opts, after, ok := strings.Cut(strings.TrimPrefix(rest, "["), "]"); ok && strings.HasPrefix(rest, "[") {
			rest = after
			for _, opt := range strings.Fields(opts) {
				key, value, _ := strings.Cut(opt, "=")
				switch key {
				case "signed-by", "trusted", "check-valid-until", "allow-insecure":
					e.options = append(e.options, key+": "+strings.ReplaceAll(value, ",", " "))
				}
			}
		}
		words := strings.Fields(rest)
		if len(words) < 3 || strings.HasPrefix(words[0], "cdrom:") {
			continue
		}
		e.uris, e.suites, e.components = words[0], words[1:2], words[2:]
		entries = append(entries, e)
	}
	return entries
}

// osRelease reads the NAME=value lines of os-release.
func osRelease(path string) (map[string]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m := map[string]string{}
	for s := bufio.NewScanner(f); s.Scan(); {
		if key, value, ok := strings.Cut(s.Text(), "="); ok {
			m[key] = strings.Trim(value, `"'`)
		}
	}
	return m, nil
}
