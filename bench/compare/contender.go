package compare

import "context"

// The kinds of order.
const (
	kindQuery   = "query"   // SELECT v FROM bench_point WHERE id = ?
	kindExec    = "exec"    // DO 1
	kindJob     = "job"     // a transaction that inserts an id into bench_job
	kindRecycle = "recycle" // replace all connections; comes while another order runs
	kindLock    = "lock"    // take the lock of a row, and give up in the middle of the next statement
)

// order is what a contender is asked to do: a line of JSON where it is a process.
type order struct {
	Kind     string  `json:"kind"`
	Callers  int     `json:"callers,omitempty"`
	Seconds  float64 `json:"seconds,omitempty"`
	EveryMS  int     `json:"every_ms,omitempty"` // 0: the next one as soon as one is done
	FirstID  int64   `json:"first_id,omitempty"`
	Deadline float64 `json:"deadline_seconds,omitempty"` // what has not come back so long after Seconds hangs

	PauseMS   int     `json:"pause_ms,omitempty"` // lock: between the lock and the statement
	Statement string  `json:"statement,omitempty"`
	Timeout   float64 `json:"timeout_seconds,omitempty"` // lock: after which the statement is given up

	endless bool // under a context that cannot end, which only Go has
}

// What a job was told.
const (
	outcomeOK      = "ok"
	outcomeFailed  = "failed"
	outcomeUnknown = "unknown" // the pool itself says that it does not know
	outcomeHung    = "hung"    // nothing, until the deadline
)

// answer is a line of a contender: ready, one job, a lock that is held, or the end of
// an order.
type answer struct {
	Ready bool   `json:"ready,omitempty"`
	Name  string `json:"name,omitempty"`

	ID      int64  `json:"id,omitempty"`
	StartUS int64  `json:"start_us,omitempty"` // since 1970
	EndUS   int64  `json:"end_us,omitempty"`
	Outcome string `json:"outcome,omitempty"`
	Error   string `json:"error,omitempty"`

	Held bool `json:"held,omitempty"`

	Done        bool    `json:"done,omitempty"`
	Kind        string  `json:"kind,omitempty"`
	Unsupported bool    `json:"unsupported,omitempty"`
	Operations  int     `json:"operations,omitempty"`
	Failed      int     `json:"failed,omitempty"`
	P50US       float64 `json:"p50_us,omitempty"`
	P99US       float64 `json:"p99_us,omitempty"`
}

// A contender is a pool that takes orders.
type contender interface {
	// Name says what it is, with versions.
	Name() string
	// Do carries an order out and returns its closing answer. What comes before that is
	// told as it comes, from several goroutines. A recycle may come beside another order.
	Do(ctx context.Context, o order, tell func(answer)) (answer, error)
	// Memory is what its process uses now, in bytes; 0 where that cannot be found out.
	Memory() int64
	Close() error
}

// target is the database that a contender works on.
type target struct {
	host, port, user, password, database string
	size                                 int // of the pool
}

// entry is a contender that can be opened.
type entry struct {
	name  string // short, for tables
	what  string // in a sentence
	open  func(ctx context.Context, t target) (contender, error)
	goes  bool // is Go code in this process
	same  bool // its queries are another contender's: only its jobs are compared
	units bool // livepool promises that its jobs are applied as often as it says
	live  bool // is livepool
}
