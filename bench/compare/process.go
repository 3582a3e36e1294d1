package compare

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	startPatience = time.Minute
	orderPatience = 30 * time.Second // beyond what the order itself takes
)

// process is a contender in a process of its own, in any language. It reads orders from
// its standard input and writes answers to its standard output, a line of JSON each.
type process struct {
	name  string
	cmd   *exec.Cmd
	stdin io.WriteCloser
	log   *tailWriter
	quit  chan struct{} // closed by Close: nobody reads answers any more
	once  sync.Once
	ended chan struct{} // closed when nothing more comes from it
	err   error         // why; to be read after ended

	mu    sync.Mutex             // guards what follows
	sinks map[string]chan answer // by kind: recycle, or whatever else runs
}

// startProcess starts a contender, and returns when its pool works.
func startProcess(ctx context.Context, t target, log io.Writer, command func(args ...string) *exec.Cmd) (*process, error) {
	cmd := command("--host", t.host, "--port", t.port, "--user", t.user, "--database", t.database, "--size", strconv.Itoa(t.size))
	p := &process{cmd: cmd, log: &tailWriter{to: log}, quit: make(chan struct{}), ended: make(chan struct{}), sinks: map[string]chan answer{}}
	p.cmd.Env = append(p.cmd.Environ(), "BENCH_PASSWORD="+t.password)
	p.cmd.Stderr = p.log
	p.cmd.WaitDelay = time.Second // for its children that have the log open
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	ready := p.sink("", 1)
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go p.read(stdout)
	select {
	case a := <-ready:
		p.name = a.Name
		return p, nil
	case <-p.ended:
		err = p.err
	case <-time.After(startPatience):
		err = fmt.Errorf("not ready within %s", startPatience)
	case <-ctx.Done():
		err = ctx.Err()
	}
	p.Close()
	return nil, err
}

// sink is where the answers of an order go.
func (p *process) sink(kind string, size int) chan answer {
	if kind != kindRecycle {
		kind = ""
	}
	c := make(chan answer, size)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sinks[kind] = c
	return c
}

// read hands the answers on until there are no more.
func (p *process) read(stdout io.Reader) {
	defer close(p.ended)
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		var a answer
		if err := json.Unmarshal(lines.Bytes(), &a); err != nil {
			p.err = fmt.Errorf("it wrote a line that is not an answer: %.100q", lines.Text())
			p.cmd.Process.Kill()
			break
		}
		kind := ""
		if a.Done && a.Kind == kindRecycle {
			kind = kindRecycle
		}
		p.mu.Lock()
		to := p.sinks[kind]
		p.mu.Unlock()
		select {
		case to <- a:
		case <-p.quit:
		}
	}
	err := p.cmd.Wait()
	if p.err == nil {
		p.err = fmt.Errorf("it ended (%v): %s", errOr(err, "without an error"), p.log.last())
	}
}

func errOr(err error, text string) string {
	if err == nil {
		return text
	}
	return err.Error()
}

func (p *process) Name() string { return p.name }

func (p *process) Do(ctx context.Context, o order, tell func(answer)) (answer, error) {
	if o.endless {
		return answer{Done: true, Kind: o.Kind, Unsupported: true}, nil
	}
	answers := p.sink(o.Kind, 100)
	line, err := json.Marshal(o)
	if err != nil {
		return answer{}, err
	}
	if _, err := p.stdin.Write(append(line, '\n')); err != nil {
		return answer{}, fmt.Errorf("it takes no order: %w", errors.Join(err, p.whyEnded()))
	}
	patience := time.NewTimer(seconds(o.Seconds+o.Deadline) + orderPatience)
	defer patience.Stop()
	for {
		select {
		case a := <-answers:
			if a.Done {
				return a, nil
			}
			tell(a)
		case <-p.ended:
			return answer{}, p.err
		case <-patience.C:
			return answer{}, fmt.Errorf("%s: no closing answer", o.Kind)
		case <-ctx.Done():
			return answer{}, ctx.Err()
		}
	}
}

// whyEnded is the error with which it has ended, if it has.
func (p *process) whyEnded() error {
	select {
	case <-p.ended:
		return p.err
	case <-time.After(2 * time.Second):
		return nil
	}
}

// Memory is its resident set, where there is a /proc.
func (p *process) Memory() int64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return 0
	}
	kB, _ := strconv.ParseInt(fields[0], 10, 64)
	return kB << 10
}

// Close ends it: by the end of its input, and if that does not do it, by force. It may be
// called more than once.
func (p *process) Close() error {
	p.once.Do(func() { close(p.quit) })
	p.stdin.Close()
	select {
	case <-p.ended:
		return nil
	case <-time.After(2 * time.Second):
	}
	err := p.cmd.Process.Kill()
	<-p.ended
	return err
}

// tailWriter passes what is written on, and keeps the last line.
type tailWriter struct {
	mu   sync.Mutex // guards what follows
	to   io.Writer
	tail string
}

func (w *tailWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if lines := strings.Split(strings.TrimSpace(string(b)), "\n"); lines[len(lines)-1] != "" {
		w.tail = lines[len(lines)-1]
	}
	return w.to.Write(b)
}

func (w *tailWriter) last() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.tail
}
