package mysqlerr

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/go-sql-driver/mysql"
)

// checkFlags reports flags that contradict each other.
func checkFlags(t *testing.T, what any, c Class) {
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

// wrappedError is an error that adds a text to its cause.
type wrappedError struct {
	text  string
	cause error
}

func (e *wrappedError) Error() string { return e.text + ": " + e.cause.Error() }
func (e *wrappedError) Unwrap() error { return e.cause }

// failedConnect is a connection that could not be opened.
type failedConnect wrappedError

func (e *failedConnect) Error() string { return e.text + ": " + e.cause.Error() }
func (e *failedConnect) Unwrap() error { return e.cause }
func (e *failedConnect) Class() Class  { return ConnectClass(e.cause) }

// wrappings are errors that wrap err, in all the ways that Classify must see through.
func wrappings(err error, text string) []error {
	return []error{
		fmt.Errorf("%s: %w", text, err),
		fmt.Errorf("job: %w", fmt.Errorf("step %q: %w", text, err)),
		errors.Join(errors.New(text), err),
		errors.Join(err, errors.New(text)),
		fmt.Errorf("%w, and %w", errors.New(text), err),
		&wrappedError{text, err},
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
		checkFlags(t, my, class)

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

		// The same for errors that are not the server's; the end of a context is 0.
		for _, err := range local {
			want := Classify(err)
			checkFlags(t, err, want)
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
