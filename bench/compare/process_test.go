package compare

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
)

const fakeMode = "BENCH_FAKE_PEER"

// The test binary is also a contender in another process.
func TestMain(m *testing.M) {
	if mode := os.Getenv(fakeMode); mode != "" {
		os.Exit(fakePeer(mode))
	}
	os.Exit(m.Run())
}

func fakePeer(mode string) int {
	say := func(a any) {
		line, _ := json.Marshal(a)
		fmt.Println(string(line))
	}
	switch mode {
	case "refuses":
		fmt.Fprintln(os.Stderr, "starting\nno java here")
		return 3
	case "garbage":
		fmt.Println("Picked up JAVA_TOOL_OPTIONS")
		io.Copy(io.Discard, os.Stdin)
		return 0
	}
	say(answer{Ready: true, Name: strings.Join(os.Args[1:], " ") + " " + os.Getenv("BENCH_PASSWORD")})
	recycled := make(chan bool)
	orders := bufio.NewScanner(os.Stdin)
	for orders.Scan() {
		var o order
		if err := json.Unmarshal(orders.Bytes(), &o); err != nil {
			return 1
		}
		switch {
		case mode == "dies":
			fmt.Fprintln(os.Stderr, "out of memory")
			return 7
		case o.Kind == kindJob:
			go func() {
				for id := range int64(3) {
					say(answer{ID: o.FirstID + id, Outcome: outcomeOK, StartUS: 1, EndUS: 2})
				}
				<-recycled // a recycle must get through while this runs
				say(answer{Done: true, Kind: o.Kind, Operations: 3})
			}()
		case o.Kind == kindRecycle:
			say(answer{Done: true, Kind: o.Kind})
			recycled <- true
		default:
			say(map[string]any{"done": true, "kind": o.Kind, "operations": o.Callers, "p99_us": 4.5, "more": "than is known"})
		}
	}
	return 0
}

func fake(t *testing.T, mode string) (*process, error) {
	t.Helper()
	t.Setenv(fakeMode, mode)
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p, err := startProcess(t.Context(), target{"127.0.0.1", "3306", "app", "pw", "bench_1", 20}, io.Discard, func(args ...string) *exec.Cmd { return exec.Command(binary, args...) })
	if p != nil {
		t.Cleanup(func() { p.Close() })
	}
	return p, err
}

func TestProcessTakesOrders(t *testing.T) {
	p, err := fake(t, "works")
	if err != nil {
		t.Fatal(err)
	}
	if want := "--host 127.0.0.1 --port 3306 --user app --database bench_1 --size 20 pw"; p.Name() != want {
		t.Errorf("it was started with %q, want %q", p.Name(), want)
	}
	a, err := p.Do(t.Context(), order{Kind: kindQuery, Callers: 8, Seconds: 0.1}, func(answer) { t.Error("told of a query") })
	if err != nil || a.Operations != 8 || a.P99US != 4.5 {
		t.Errorf("answer %+v, %v", a, err)
	}
	var ids []int64
	var jobs sync.WaitGroup
	first := make(chan bool, 3)
	jobs.Go(func() {
		a, err := p.Do(t.Context(), order{Kind: kindJob, FirstID: 41}, func(a answer) { ids = append(ids, a.ID); first <- true })
		if err != nil || !a.Done || a.Operations != 3 {
			t.Errorf("answer %+v, %v", a, err)
		}
	})
	<-first
	if a, err := p.Do(t.Context(), order{Kind: kindRecycle}, func(answer) {}); err != nil || a.Kind != kindRecycle {
		t.Errorf("answer %+v, %v", a, err)
	}
	jobs.Wait()
	if !slices.Equal(ids, []int64{41, 42, 43}) {
		t.Errorf("jobs %v", ids)
	}
	if a, err := p.Do(t.Context(), order{Kind: kindExec, endless: true}, nil); err != nil || !a.Unsupported {
		t.Errorf("a context that cannot end: %+v, %v", a, err)
	}
	if err := p.Close(); err != nil || !p.cmd.ProcessState.Success() {
		t.Errorf("it was closed with %v, and ended with %v", err, p.cmd.ProcessState)
	}
}

func TestProcessThatFailsSaysWhy(t *testing.T) {
	for mode, want := range map[string]string{"refuses": "no java here", "garbage": `"Picked up JAVA_TOOL_OPTIONS"`} {
		if _, err := fake(t, mode); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", mode, err, want)
		}
	}
	p, err := fake(t, "dies")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second finds nobody who listens
		if _, err := p.Do(t.Context(), order{Kind: kindExec}, nil); err == nil || !strings.Contains(err.Error(), "out of memory") || !strings.Contains(err.Error(), "exit status 7") {
			t.Errorf("the error is %v", err)
		}
	}
}

func TestWaitForProcessEndsWithContext(t *testing.T) {
	p, err := fake(t, "works")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err = p.Do(ctx, order{Kind: kindJob}, func(answer) { cancel() }) // and nobody recycles
	if err != context.Canceled {
		t.Errorf("the error is %v", err)
	}
}
