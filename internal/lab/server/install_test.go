package server

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func TestTheDebianArchiveIsFoundAmongTheSources(t *testing.T) {
	const trixie = "ID=debian\nVERSION_CODENAME=trixie\n"
	for _, tt := range []struct {
		name  string
		files map[string]string
		want  []archive
	}{
		{"stanzas", map[string]string{
			"etc/os-release": trixie,
			"etc/apt/sources.list.d/debian.sources": `# a comment
Types: deb deb-src
# another, within
URIs: http://mirror.example/debian
Suites: trixie trixie-updates
Components: main contrib
Signed-By: /usr/share/keyrings/some.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: trixie-security
Components: main
`,
			"etc/apt/sources.list.d/vendor.sources": "Types: deb\nURIs: https://vendor.example/apt\nSuites: stable\nComponents: tools\n",
		}, []archive{{"http://mirror.example/debian", "trixie", []string{"Signed-By: /usr/share/keyrings/some.gpg"}}}},
		{"a key within the stanza", map[string]string{
			"etc/os-release":                        trixie,
			"etc/apt/sources.list.d/debian.sources": "Types: deb\nURIs: http://m.example/\nSuites: trixie\nComponents: main\nSigned-By:\n -----BEGIN\n .\n abc\n",
		}, []archive{{"http://m.example/", "trixie", []string{"Signed-By:\n -----BEGIN\n .\n abc"}}}},
		{"lines", map[string]string{
			"etc/os-release": trixie,
			"etc/apt/sources.list": `# deb http://no.example/debian trixie main
deb-src http://src.example/debian trixie main
deb cdrom:[Debian]/ trixie main
deb [ arch=amd64 signed-by=/k.gpg ]  http://m.example/debian	trixie main non-free # the one
deb http://m.example/debian trixie-updates main
`,
		}, []archive{{"http://m.example/debian", "trixie", []string{"signed-by: /k.gpg"}}}},
		{"Debian's own file comes before a vendor's that looks the same", map[string]string{
			"etc/os-release":                  trixie,
			"etc/apt/sources.list.d/aaa.list": "deb http://vendor.example/ trixie main\n",
			"etc/apt/sources.list":            "deb http://m.example/debian trixie main\n",
		}, []archive{{"http://m.example/debian", "trixie", nil}, {"http://vendor.example/", "trixie", nil}}},
		{"disabled", map[string]string{
			"etc/os-release":                        trixie,
			"etc/apt/sources.list.d/debian.sources": "Enabled: no\nTypes: deb\nURIs: http://m.example/\nSuites: trixie\nComponents: main\n",
		}, nil},
		{"another system", map[string]string{
			"etc/os-release":       "ID=ubuntu\nVERSION_CODENAME=noble\n",
			"etc/apt/sources.list": "deb http://m.example/ubuntu noble main\n",
		}, nil},
		{"nothing", nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			for name, text := range tt.files {
				path := filepath.Join(root, name)
				if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
					t.Fatal(err)
				}
			}
			got, err := debianArchives(root)
			if !reflect.DeepEqual(got, tt.want) || (err == nil) != (tt.want != nil) {
				t.Errorf("got %q, %v\nwant %q", got, err, tt.want)
			}
		})
	}
}

func TestTheCacheMakesAThingOnce(t *testing.T) {
	t.Setenv("LIVEPOOL_CACHE", filepath.Join(t.TempDir(), "deep", "cache"))
	oops := errors.New("oops")
	if _, err := Cached(t.Context(), "thing", func(dir string) error {
		os.WriteFile(filepath.Join(dir, "half"), nil, 0o644)
		return oops
	}); !errors.Is(err, oops) {
		t.Fatalf("a making that failed: %v", err)
	}
	var made atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			dir, err := Cached(t.Context(), "thing", func(dir string) error {
				made.Add(1)
				return os.WriteFile(filepath.Join(dir, "whole"), nil, 0o644)
			})
			if err != nil || !isFile(filepath.Join(dir, "whole")) || isFile(filepath.Join(dir, "half")) {
				t.Errorf("%s: %v", dir, err)
			}
		})
	}
	wg.Wait()
	if n := made.Load(); n != 1 {
		t.Errorf("made %d times", n)
	}
	left, _ := filepath.Glob(filepath.Join(os.Getenv("LIVEPOOL_CACHE"), "*"))
	if len(left) != 2 { // the thing and the lock
		t.Errorf("left in the cache: %q", left)
	}
}

func TestWhereNothingCanBeFetchedTheErrorSaysWhatToDo(t *testing.T) {
	t.Setenv("LIVEPOOL_CACHE", t.TempDir())
	t.Setenv("PATH", t.TempDir())
	r := recipes[MySQL]
	r.matches = func(string) bool { return false } // whatever the machine has
	saved := recipes[MySQL]
	recipes[MySQL] = r
	defer func() { recipes[MySQL] = saved }()
	_, err := find(t.Context(), MySQL)
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "install its server package") {
		t.Error(err)
	}
}

func TestACopyIsTheSameAndKeepsItsHoles(t *testing.T) {
	from, to := t.TempDir(), filepath.Join(t.TempDir(), "copy")
	text := append(make([]byte, 3*len(zeros)), "end"...)
	copy(text, "begin")
	if err := errors.Join(os.Mkdir(filepath.Join(from, "d"), 0o755), os.WriteFile(filepath.Join(from, "d", "f"), text, 0o640),
		os.WriteFile(filepath.Join(from, "zeros"), zeros[:], 0o600), os.WriteFile(filepath.Join(from, "empty"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := copyTree(from, to); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"d/f": string(text), "zeros": string(zeros[:]), "empty": ""} {
		got, err := os.ReadFile(filepath.Join(to, name))
		if err != nil || string(got) != want {
			t.Errorf("%s: %d bytes, %v; want %d", name, len(got), err, len(want))
		}
	}
}
