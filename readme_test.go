package livepool_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/livepool/livepool"
)

// Every Go block of the README is a program that compiles.
func TestReadmeBlocksCompile(t *testing.T) {
	t.Parallel()
	root, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	blocks := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(readme(t), -1)
	if len(blocks) == 0 {
		t.Fatal("the README holds no Go block")
	}
	for i, block := range blocks {
		write(t, filepath.Join(dir, "block"+strconv.Itoa(i), "main.go"), block[1])
	}
	mod, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "go.mod"), strings.Replace(string(mod), "module github.com/livepool/livepool", "module readme", 1)+
		"\nrequire github.com/livepool/livepool v0.0.0\nreplace github.com/livepool/livepool => "+root+"\n")
	sum, err := os.ReadFile("go.sum")
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "go.sum"), string(sum))
	vet := exec.Command("go", "vet", "-mod=mod", "./...")
	vet.Dir = dir
	vet.Env = append(os.Environ(), "GOWORK=off")
	if out, err := vet.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// Every setting is in the README.
func TestReadmeKnowsEverySetting(t *testing.T) {
	text := readme(t)
	squashed := strings.NewReplacer("_", "", "`", "").Replace(strings.ToLower(text))
	for _, field := range reflect.VisibleFields(reflect.TypeFor[livepool.Config]()) {
		if field.IsExported() && !strings.Contains(squashed, strings.ToLower(field.Name)) {
			t.Errorf("the README does not name %s", field.Name)
		}
	}
	_, err := livepool.ParseDSN("/?pool_=")
	for _, name := range regexp.MustCompile(`pool_\w+`).FindAllString(err.Error(), -1) {
		if !strings.Contains(text, "`"+name+"`") {
			t.Errorf("the README does not name %s", name)
		}
	}
}

func readme(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Each test that the track record names is there.
func TestTrackRecordNamesTests(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("docs", "reliability.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, record, _ := strings.Cut(string(text), "\n## Track record\n")
	record, _, _ = strings.Cut(record, "\n## ")
	tests := map[string]bool{}
	err = filepath.WalkDir(".", func(path string, _ os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		code, err := os.ReadFile(path)
		for _, m := range regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`).FindAllSubmatch(code, -1) {
			tests[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile(`(?m)^\| 20\d\d-\d\d \|.*$`).FindAllString(record, -1)
	if len(rows) < 30 {
		t.Errorf("the track record has %d rows", len(rows))
	}
	for _, row := range rows {
		cells := strings.Split(row, " | ")
		named := regexp.MustCompile("`((?:Test|Fuzz)\\w+)(?:/[^`]*)?`").FindAllStringSubmatch(cells[len(cells)-1], -1)
		if len(named) == 0 {
			t.Errorf("no test is named: %s", row)
		}
		for _, name := range named {
			if !tests[name[1]] {
				t.Errorf("there is no test %s: %s", name[1], row)
			}
		}
	}
}
