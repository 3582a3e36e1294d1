package livepool

// Whatever comes in as text or bytes, and what must be true of it. Each target
// states properties that do not follow the code: the driver's own reading of a
// DSN, the server's reading of a statement, the layout of the protocol. What was
// once found, and what real servers say, is in testdata/fuzz.

import (
	"bytes"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
)

const wordBytes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_$"

// documented is what the README says of each parameter: its name, and what it may be.
var documented = map[string]func(c *Config) bool{
	"pool_size":            func(c *Config) bool { return c.PoolSize >= 0 && c.PoolSize <= 100000 },
	"pool_max_overflow":    func(c *Config) bool { return c.MaxOverflow >= -1 && c.MaxOverflow <= 100000 },
	"pool_min_idle":        func(c *Config) bool { return c.MinIdle >= 0 && c.MinIdle <= c.PoolSize },
	"pool_idle_timeout":    func(c *Config) bool { return c.IdleTimeout >= 0 },
	"pool_recycle":         func(c *Config) bool { return c.Recycle >= 0 },
	"pool_recycle_jitter":  func(c *Config) bool { return c.RecycleJitter >= 0 && c.RecycleJitter <= 1 },
	"pool_pre_ping":        func(c *Config) bool { return c.PrePing >= PrePingOff && c.PrePing <= PrePingAlways },
	"pool_ping_after":      func(c *Config) bool { return c.PingAfter >= 0 },
	"pool_ping_timeout":    func(c *Config) bool { return c.PingTimeout > 0 },
	"pool_keepalive":       func(c *Config) bool { return c.KeepAlive >= 0 },
	"pool_connect_timeout": func(c *Config) bool { return c.ConnectTimeout > 0 },
	"pool_commit_timeout":  func(c *Config) bool { return c.CommitTimeout > 0 },
	"pool_timeout":         func(c *Config) bool { return c.PoolTimeout >= 0 },
	"pool_stall_after":     func(c *Config) bool { return c.StallAfter >= 0 },
	"pool_kill_abandoned":  func(*Config) bool { return true },
	"pool_beacon":          func(c *Config) bool { return c.Beacon >= BeaconOff && c.Beacon <= BeaconOn },
	"pool_leak_after":      func(c *Config) bool { return c.LeakAfter >= 0 },
	"pool_max_attempts":    func(c *Config) bool { return c.MaxAttempts >= 1 },
	"pool_max_elapsed":     func(c *Config) bool { return c.MaxElapsed >= 0 },
	"pool_commit_table": func(c *Config) bool {
		return c.CommitTable != "" && strings.Trim(c.CommitTable, wordBytes+".") == "" && strings.Count(c.CommitTable, ".") <= 1
	},
}

// durations are those of the settings that are times.
func durations(c *Config) map[string]time.Duration {
	return map[string]time.Duration{
		"pool_idle_timeout": c.IdleTimeout, "pool_recycle": c.Recycle, "pool_ping_after": c.PingAfter,
		"pool_ping_timeout": c.PingTimeout, "pool_keepalive": c.KeepAlive, "pool_connect_timeout": c.ConnectTimeout,
		"pool_commit_timeout": c.CommitTimeout, "pool_timeout": c.PoolTimeout, "pool_stall_after": c.StallAfter,
		"pool_leak_after": c.LeakAfter, "pool_max_elapsed": c.MaxElapsed,
	}
}

// driverReads is the driver's reading of the whole DSN, which takes a pool_*
// parameter for a variable to be SET.
func driverReads(dsn string) (cfg *mysql.Config, ours map[string]string, err error) {
	cfg, err = safeParse(dsn)
	if err != nil {
		return nil, nil, err
	}
	ours = map[string]string{}
	for name, value := range cfg.Params {
		if strings.HasPrefix(name, "pool_") {
			ours[name] = value
			delete(cfg.Params, name)
		}
	}
	if len(cfg.Params) == 0 {
		cfg.Params = nil
	}
	return cfg, ours, nil
}

func sameDriverSettings(a, b *mysql.Config) bool {
	a, b = a.Clone(), b.Clone()
	if a.Loc.String() != b.Loc.String() { // each load makes a new one
		return false
	}
	a.Loc, b.Loc = nil, nil
	return a.FormatDSN() == b.FormatDSN() && reflect.DeepEqual(a, b)
}

// FuzzParseDSN puts a known password between before and after, and @ or its
// escape behind it.
func FuzzParseDSN(f *testing.F) {
	for _, params := range []string{
		"", "?parseTime=true&pool_size=20&pool_recycle=30m", "?pool_recycle=1.5&pool_keepalive=0&time_zone=%27%2B00%3A00%27",
		"?pool_pre_ping=always&pool_beacon=on&pool_kill_abandoned=off", "?pool_commit_table=ops.commits&pool_recycle_jitter=1e-1",
		"?pool_sise=3", "?pool_size", "?pool_size=1&pool_size=2", "?pool_min_idle=11", "?strict=true", "?tls=preferred&loc=Local",
	} {
		f.Add("app", "", "", "tcp(db.example:3306)/shop"+params, false)
	}
	for _, rest := range []string{"tcp(db:3306)", "tcp(db:3306", "nowhere/shop", "unix(/run/mysqld.sock)/", "tcp([::1]:3306)/a%2Fb"} {
		f.Add("app", "p/x?parseTime=", "%zz", rest, false)
		f.Add("app", "p/x?pool_size=", "", rest, true)
	}
	f.Add("app@tcp(db", "p)/x?parseTime=", "", "tcp", true)
	f.Fuzz(func(t *testing.T, user, before, after, rest string, escaped bool) {
		const secret = "s3cretW0rd"
		if len(user)+len(before)+len(after)+len(rest) > 1000 || strings.Contains(user+before+after+rest, secret) {
			return
		}
		at := "@"
		if escaped {
			at = "%40"
		}
		dsn := user + ":" + before + secret + after + at + rest
		cfg, err := ParseDSN(dsn)
		if err != nil {
			if strings.Contains(err.Error(), secret) {
				t.Errorf("%q: the error holds the password: %v", dsn, err)
			}
			if !strings.HasPrefix(err.Error(), "livepool: ") || cfg != nil {
				t.Errorf("%q: %v, %v", dsn, cfg, err)
			}
			return
		}

		// The driver takes it too, and means the same by the rest of it.
		theirs, ours, err := driverReads(dsn)
		if err != nil {
			t.Fatalf("%q is accepted, and not by the driver: %v", dsn, err)
		}
		if !sameDriverSettings(cfg.MySQL, theirs) {
			t.Errorf("%q: the driver gets %+v, want %+v", dsn, cfg.MySQL, theirs)
		}

		// Every parameter of livepool's is known, and says what was meant.
		for name, value := range ours {
			if documented[name] == nil {
				t.Errorf("%q: %s is accepted", dsn, name)
			}
			if got, ok := durations(cfg)[name]; ok {
				d, err := time.ParseDuration(value)
				want := d.Seconds()
				if seconds, notPlain := strconv.ParseFloat(value, 64); err != nil && notPlain == nil {
					want = seconds
				}
				if math.Abs(got.Seconds()-want) > 1e-9*(want+1) {
					t.Errorf("%q: %s is %s, want %gs", dsn, name, got, want)
				}
			}
		}
		for name, ok := range documented {
			if !ok(cfg) {
				t.Errorf("%q: %s is out of its range: %+v", dsn, name, cfg)
			}
		}
		if cfg.PoolSize == 0 && cfg.MaxOverflow == 0 {
			t.Errorf("%q: no connection can ever be opened", dsn)
		}

		// One that nobody knows is refused, wherever it stands.
		_, query, found := strings.Cut(dsn[strings.LastIndexByte(dsn, '/')+1:], "?")
		if unknown := strings.TrimSuffix(dsn, "?"+query) + "?pool_unheard_of=1&" + query; found {
			if _, err := ParseDSN(unknown); err == nil {
				t.Errorf("%q is accepted", unknown)
			}
		}

		// Written down again, they are read as the same settings.
		written := "/"
		for i, p := range params {
			value := p.show(cfg)
			if p.dsn == "pool_commit_table" {
				value = cfg.CommitTable
			}
			written += string("?&"[min(i, 1)]) + p.dsn + "=" + value
		}
		read, err := ParseDSN(written)
		if err != nil {
			t.Fatalf("%q, written as %q: %v", dsn, written, err)
		}
		read.MySQL, read.BackOff, cfg.MySQL, cfg.BackOff = nil, nil, nil, nil
		read.connectTimeoutGiven = cfg.connectTimeoutGiven // as every setting is when it is written
		if !reflect.DeepEqual(read, cfg) {
			t.Errorf("%q, written as %q: got %+v, want %+v", dsn, written, read, cfg)
		}
	})
}

// cutConn gives out what a server sent, in pieces.
type cutConn struct {
	net.Conn
	rest  []byte
	sizes []byte // of the pieces, again and again
	reads int
}

func (c *cutConn) Read(b []byte) (int, error) {
	c.reads++
	if len(c.rest) == 0 {
		return 0, io.EOF
	}
	n := len(c.rest)
	if len(c.sizes) > 0 {
		n = int(c.sizes[c.reads%len(c.sizes)])
	}
	n = copy(b[:min(n, len(b))], c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// threadIDOf reads the thread id by the layout of the packet, all of which has come.
func threadIDOf(b []byte) (id uint32) {
	if len(b) < 5 || b[4] != 10 {
		return 0
	}
	version, rest, ended := bytes.Cut(b[5:], []byte{0})
	if !ended || 4+1+len(version)+1 > maxServerVersion || len(rest) < 4 {
		return 0
	}
	return uint32(rest[0]) | uint32(rest[1])<<8 | uint32(rest[2])<<16 | uint32(rest[3])<<24
}

func FuzzHandshake(f *testing.F) {
	f.Add(greeting("9.7.0", 42), uint32(42), []byte{3})
	f.Add(greeting("5.5.5-10.11.6-MariaDB-0+deb12u1", 1<<31), uint32(1<<31), []byte{4, 1, 200})
	f.Add(append([]byte{23, 0, 0, 0, 0xff, 0x10, 0x04}, "Too many connections"...), uint32(0), []byte{0, 1})
	f.Add([]byte("SSH-2.0-OpenSSH_9.2\r\n"), uint32(0), []byte{})
	f.Add(greeting("9.7.0", 0x01020304)[:13], uint32(0), []byte{})
	f.Add(append([]byte{0, 0, 0, 0, 10}, strings.Repeat("9", 1100)...), uint32(1), []byte{255})
	f.Fuzz(func(t *testing.T, sent []byte, id uint32, sizes []byte) {
		if !slices.ContainsFunc(sizes, func(n byte) bool { return n > 0 }) {
			sizes = nil
		}
		// passes lets the driver read it all, and returns what livepool saw.
		passes := func(sent, sizes []byte) *wire {
			c := &cutConn{rest: sent, sizes: sizes}
			w := newWire(c)
			var got []byte
			b := make([]byte, 300)
			for reads := 1; ; reads++ {
				for i := range b {
					b[i] = 0xa5
				}
				n, err := w.Read(b)
				got = append(got, b[:n]...)
				if c.reads != reads {
					t.Fatalf("%q: %d reads of the socket for %d of the driver's", sent, c.reads, reads)
				}
				if rest := b[n:]; len(rest) != bytes.Count(rest, []byte{0xa5}) {
					t.Fatalf("%q: written beyond what was read", sent)
				}
				if err != nil {
					if err != io.EOF {
						t.Fatalf("%q: %v", sent, err)
					}
					break
				}
			}
			if !bytes.Equal(got, sent) {
				t.Errorf("the server sent %q, the driver reads %q", sent, got)
			}
			return w
		}

		cut, whole := passes(sent, sizes), passes(sent, nil)
		if cut.hello != whole.hello {
			t.Errorf("%q: in pieces %+v, otherwise %+v", sent, cut.hello, whole.hello)
		}
		// What is endless or no handshake has none, and half of an id is none.
		if want := threadIDOf(sent); cut.hello.threadID != want {
			t.Errorf("%q: thread id %d, want %d", sent, cut.hello.threadID, want)
		}
		if h := cut.hello; !h.done && (h.threadID != 0 || len(sent) > 1100) {
			t.Errorf("%q: %+v", sent, h)
		}

		// Of a greeting it is always the id, whatever the server calls itself.
		version := strings.ReplaceAll(string(sent[:min(len(sent), 1000)]), "\x00", "")
		if h := passes(greeting(version, id), sizes).hello; !h.done || h.threadID != id {
			t.Errorf("%q: thread id %d, want %d, done %v", version, h.threadID, id, h.done)
		}
	})
}

// coherent reports flags that contradict each other, by what errors.go says that
// they mean.
func coherent(t *testing.T, what any, c Class) {
	t.Helper()
	has := func(flags Class) bool { return c&flags == flags }
	for contradiction, is := range map[string]bool{
		"a wait before no retry":                               has(BackOff) && !has(Retry),
		"the transaction is gone, and only a statement undone": has(TxGone | StatementUndone),
		"a transaction outlives its connection":                has(ConnDead) && !has(TxGone),
		"not run, and of unknown effect":                       has(NotRun | CommitUnknown),
		"not run, and undone":                                  has(NotRun | StatementUndone),
		"refused by this server, and run":                      has(Elsewhere) && !has(NotRun),
		"of use elsewhere, and not to be run again":            has(Elsewhere) && !has(Retry),
		"to be run again, and nothing of it undone":            has(Retry) && !has(NotRun) && !has(TxGone) && !has(StatementUndone),
		"a COMMIT of unknown effect leaves its transaction":    has(CommitUnknown) && !has(TxGone) && !has(StatementUndone),
	} {
		if is {
			t.Errorf("%v: %s: %s", what, c, contradiction)
		}
	}
	var again Class
	for name := range strings.SplitSeq(c.String(), "|") {
		for flag := ConnDead; flag <= BackOff; flag <<= 1 {
			if flag.String() == name {
				again |= flag
			}
		}
	}
	if again != c {
		t.Errorf("%v: %b prints as %s", what, c, c)
	}
}

// toldError is an error that tells more of its cause.
type toldError struct {
	text  string
	cause error
}

func (e *toldError) Error() string { return e.text + ": " + e.cause.Error() }
func (e *toldError) Unwrap() error { return e.cause }

// failedConnect is a connection that could not be opened.
type failedConnect toldError

func (e *failedConnect) Error() string { return e.text + ": " + e.cause.Error() }
func (e *failedConnect) Unwrap() error { return e.cause }
func (e *failedConnect) class() Class  { return ofConnect(e.cause) }

// wrappings of an error through which Classify looks.
func wrappings(err error, text string) []error {
	return []error{
		fmt.Errorf("%s: %w", text, err),
		fmt.Errorf("job: %w", fmt.Errorf("step %q: %w", text, err)),
		errors.Join(errors.New(text), err),
		errors.Join(err, errors.New(text)),
		fmt.Errorf("%w, and %w", errors.New(text), err),
		&toldError{text, err},
	}
}

func FuzzClassify(f *testing.F) {
	for _, row := range serverErrors {
		f.Add(row.number, row.state, "said "+row.text+" or so")
	}
	f.Add(uint16(60001), "40001", "unheard of")
	f.Add(uint16(1290), "40001", "--skip-grant-tables")
	f.Add(uint16(1062), "23000", "Duplicate entry")
	local := []error{
		driver.ErrBadConn, mysql.ErrInvalidConn, mysql.ErrPktSync, mysql.ErrMalformPkt, mysql.ErrPktTooLarge, io.EOF, io.ErrUnexpectedEOF,
		net.ErrClosed, &net.OpError{Op: "read", Err: syscall.ECONNRESET}, syscall.EPIPE, fmt.Errorf("no reply: %w", syscall.ETIMEDOUT), errors.New("sold out"),
		&failedConnect{"connecting", &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}},
	}
	f.Fuzz(func(t *testing.T, number uint16, state, message string) {
		my := &mysql.MySQLError{Number: number, Message: message}
		copy(my.SQLState[:], state)
		class := Classify(my)
		coherent(t, my, class)

		// An error of the server's means the same wherever it is found.
		ended := []error{context.Canceled, context.DeadlineExceeded}
		for _, err := range append(wrappings(my, message),
			&failedConnect{message, my}, errors.Join(ended[0], my), errors.Join(my, ended[1]), errors.Join(my, io.EOF)) {
			if got := Classify(err); got != class {
				t.Errorf("%v: %s as it is, wrapped (%T) %s", my, class, err, got)
			}
		}

		// A number that the table does not have says nothing, unless the SQLSTATE
		// says that the transaction was rolled back; of the others only an
		// overloaded one depends on its text.
		rows := slices.DeleteFunc(slices.Clone(serverErrors), func(row serverError) bool { return row.number != number })
		fits := slices.ContainsFunc(rows, func(row serverError) bool { return strings.Contains(message, row.text) })
		switch {
		case !fits && string(my.SQLState[:]) == "40001":
			if class != TxGone|Retry|BackOff {
				t.Errorf("%v: %s, and was rolled back", my, class)
			}
		case !fits && class != 0:
			t.Errorf("%v: %s of an error that is unknown", my, class)
		case fits && !slices.ContainsFunc(rows, func(row serverError) bool { return row.class == class }):
			t.Errorf("%v: %s, which is in no row of its number", my, class)
		case fits:
			other := *my
			other.SQLState = [5]byte([]byte("HY000")) // as a proxy has it
			if got := Classify(&other); got != class {
				t.Errorf("%v: %s, with another SQLSTATE %s", my, class, got)
			}
			if !slices.ContainsFunc(rows, func(row serverError) bool { return row.text != "" }) {
				other.Message = "in another language"
				if got := Classify(&other); got != class {
					t.Errorf("%v: %s, with another text %s", my, class, got)
				}
			}
		}

		// The same of errors that are not the server's; a context's end is nothing.
		for _, err := range local {
			want := Classify(err)
			coherent(t, err, want)
			for _, wrapped := range wrappings(err, message) {
				if got := Classify(wrapped); got != want {
					t.Errorf("%v: %s, wrapped (%T) %s", err, want, wrapped, got)
				}
			}
		}
		for _, err := range ended {
			for _, err := range append(wrappings(err, message), err, &failedConnect{message, err}) {
				if got := Classify(err); got != 0 {
					t.Errorf("%v (%T): %s", err, err, got)
				}
			}
		}
	})
}
