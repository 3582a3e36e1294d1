package labtest

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
)

// CapturedLog is a slog.Handler that keeps what the pool says, from Info on.
type CapturedLog struct {
	mu      sync.Mutex
	records []slog.Record
}

func (l *CapturedLog) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo
}
func (l *CapturedLog) WithAttrs([]slog.Attr) slog.Handler { return l }
func (l *CapturedLog) WithGroup(string) slog.Handler      { return l }
func (l *CapturedLog) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.records = append(l.records, r)
	return nil
}

// LinesWith returns the records whose message contains s, as text.
func (l *CapturedLog) LinesWith(s string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.records {
		if strings.Contains(r.Message, s) {
			text := r.Message
			r.Attrs(func(a slog.Attr) bool { text += "\n" + a.String(); return true })
			found = append(found, text)
		}
	}
	return found
}

// DiscardLogger logs nothing.
var DiscardLogger = slog.New(slog.DiscardHandler)

// Buffer is a bytes.Buffer that several may use at a time.
type Buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *Buffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *Buffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
