// Package repo_test holds what is around the code against itself: the workflow of the forge, the
// handles of the Makefile.
package repo_test

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// atRoot lets a test name files as seen from the repository's root. It is called in each
// test, and not in TestMain, for go test to notice it: otherwise it would not know which
// files a cached result depends on.
func atRoot(t *testing.T) {
	t.Helper()
	if err := goToRoot(); err != nil {
		t.Fatal(err)
	}
}

var goToRoot = sync.OnceValue(func() error { return os.Chdir(filepath.Join("..", "..")) })

// read returns a file of the repository.
func read(t *testing.T, path ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// A check is a command and the environment it is given.
type check struct {
	command string
	env     map[string]string
}

// ofScript is what .ci/run does: it exports and then becomes the command.
func ofScript(t *testing.T, text string) check {
	t.Helper()
	c := check{env: map[string]string{}}
	for _, m := range regexp.MustCompile(`(?m)^export (\w+)=(.*)$`).FindAllStringSubmatch(text, -1) {
		c.env[m[1]] = m[2]
	}
	exec := regexp.MustCompile(`(?m)^exec (.*)$`).FindAllStringSubmatch(text, -1)
	if len(exec) != 1 {
		t.Fatalf(".ci/run has %d commands to become, want 1", len(exec))
	}
	c.command = exec[0][1]
	return c
}

// ofWorkflow is what the workflow's last step does; those before it prepare the machine.
func ofWorkflow(t *testing.T, text string) check {
	t.Helper()
	step := text[strings.LastIndex(text, "\n      - ")+1:]
	run := regexp.MustCompile(`(?m)^        run: (.*)$`).FindStringSubmatch(step)
	if run == nil {
		t.Fatalf("the last step of the workflow runs nothing:\n%s", step)
	}
	c := check{run[1], map[string]string{}}
	for _, m := range regexp.MustCompile(`(?m)^          (\w+): (.*)$`).FindAllStringSubmatch(step, -1) {
		c.env[m[1]] = strings.Trim(m[2], `"`)
	}
	return c
}

// The forge asks of a change what .ci/run does, neither more nor less.
func TestWorkflowIsTheScript(t *testing.T) {
	atRoot(t)
	script := ofScript(t, read(t, ".ci", "run"))
	workflow := ofWorkflow(t, read(t, ".github", "workflows", "ci.yml"))
	if script.command != workflow.command || !maps.Equal(script.env, workflow.env) {
		t.Errorf("the workflow runs %+v, .ci/run %+v", workflow, script)
	}
	if len(script.env) == 0 {
		t.Error("nothing says that no test may be skipped")
	}
}

// A workflow may do no more than read, and is the same tomorrow.
func TestWorkflowsAreModest(t *testing.T) {
	atRoot(t)
	for _, name := range []string{"ci.yml", "weekly.yml"} {
		text := read(t, ".github", "workflows", name)
		for _, want := range []string{"\npermissions:\n  contents: read\n", "timeout-minutes: ", "go-version-file: go.mod\n"} {
			if !strings.Contains(text, want) {
				t.Errorf("%s lacks %q", name, want)
			}
		}
		uses := regexp.MustCompile(`(?m)^.*\buses: (\S+)$`).FindAllStringSubmatch(text, -1)
		if len(uses) == 0 {
			t.Errorf("%s uses no action, not even one that has the code checked out", name)
		}
		for _, action := range uses {
			if !regexp.MustCompile(`@v\d+$`).MatchString(action[1]) {
				t.Errorf("%s: %s is not pinned by its major version", name, action[1])
			}
		}
	}
}

// Each target of the Makefile says what it is for, which is what `make help` lists.
func TestTargetsAreExplained(t *testing.T) {
	atRoot(t)
	text := read(t, "Makefile")
	var explained []string
	for _, m := range regexp.MustCompile(`(?m)^([a-z]+):.*## \S`).FindAllStringSubmatch(text, -1) {
		explained = append(explained, m[1])
	}
	phony := regexp.MustCompile(`(?m)^\.PHONY: (.*)$`).FindStringSubmatch(text)
	if phony == nil || !slices.Equal(strings.Fields(phony[1]), explained) {
		t.Errorf("the targets are %v, those explained %v", phony, explained)
	}
}
