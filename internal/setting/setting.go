// Package setting is the mechanism of a table of settings: each with the names it has
// in a DSN and in a struct C, what it takes, and how it is read, checked and shown. It
// knows no setting by itself; the root has the table.
package setting

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Setting is one row of the table.
type Setting[C any] struct {
	DSN   string // its name in a DSN
	Field string // its name in C
	Takes string // which values, in words
	// Set reads a value and returns false if it cannot be read.
	Set func(c *C, value string) bool
	// OK says whether the value in c is one that it takes.
	OK func(c *C) bool
	// Show writes it as a DSN would have it.
	Show func(c *C) string
}

// Int is a whole number from low to high.
func Int[C any](dsn, field string, low, high int, at func(*C) *int) Setting[C] {
	return Setting[C]{
		DSN: dsn, Field: field,
		Takes: fmt.Sprintf("a whole number from %d to %d", low, high),
		Set: func(c *C, value string) (ok bool) {
			n, err := strconv.Atoi(value)
			*at(c) = n
			return err == nil
		},
		OK:   func(c *C) bool { return *at(c) >= low && *at(c) <= high },
		Show: func(c *C) string { return strconv.Itoa(*at(c)) },
	}
}

// Duration is a duration of 0 or more, or above 0 if it must be positive.
func Duration[C any](dsn, field string, positive bool, at func(*C) *time.Duration) Setting[C] {
	takes := "a duration of 0 or more, such as 500ms, 1h or 3600 (seconds)"
	if positive {
		takes = "a duration above 0, such as 500ms, 5s or 10 (seconds)"
	}
	return Setting[C]{
		DSN: dsn, Field: field, Takes: takes,
		Set: func(c *C, value string) bool {
			d, err := parseDuration(value)
			*at(c) = d
			return err == nil
		},
		OK:   func(c *C) bool { return *at(c) > 0 || *at(c) == 0 && !positive },
		Show: func(c *C) string { return at(c).String() },
	}
}

// Alias returns the setting with another name for one of its values.
func (s Setting[C]) Alias(name, value string) Setting[C] {
	set := s.Set
	s.Set = func(c *C, given string) bool {
		if given == name {
			given = value
		}
		return set(c, given)
	}
	return s
}

// parseDuration reads a Go duration or plain seconds.
func parseDuration(value string) (time.Duration, error) {
	if strings.Trim(value, "0123456789.+-") == "" {
		value += "s"
	}
	return time.ParseDuration(value)
}

// Word is a word that a DSN may use for a value.
type Word[T comparable] struct {
	Name  string
	Value T
}

// NameOf is the first word for a value, by which it prints; kind names its type.
func NameOf[T ~int](words []Word[T], value T, kind string) string {
	if name, ok := nameOf(words, value); ok {
		return name
	}
	return kind + "(" + strconv.Itoa(int(value)) + ")"
}

func nameOf[T comparable](words []Word[T], value T) (name string, ok bool) {
	for _, w := range words {
		if w.Value == value {
			return w.Name, true
		}
	}
	return "", false
}

// OneOf is one of some words, in upper or lower case.
func OneOf[C any, T comparable](dsn, field string, words []Word[T], at func(*C) *T) Setting[C] {
	names := make([]string, len(words))
	for i, w := range words {
		names[i] = w.Name
	}
	return Setting[C]{
		DSN: dsn, Field: field,
		Takes: "one of " + strings.Join(names, ", "),
		Set: func(c *C, value string) bool {
			for _, w := range words {
				if strings.EqualFold(w.Name, value) { // True, as in Python, TRUE, as the driver takes it
					*at(c) = w.Value
					return true
				}
			}
			return false
		},
		OK: func(c *C) bool {
			_, ok := nameOf(words, *at(c))
			return ok
		},
		Show: func(c *C) string {
			if name, ok := nameOf(words, *at(c)); ok {
				return name
			}
			return fmt.Sprint(*at(c))
		},
	}
}

// Bools are the words for true and false.
var Bools = []Word[bool]{{"true", true}, {"false", false}, {"1", true}, {"0", false}, {"on", true}, {"off", false}}

// Share is a number from 0 to 1; of says what it is a share of.
func Share[C any](dsn, field, of string, at func(*C) *float64) Setting[C] {
	return Setting[C]{
		DSN: dsn, Field: field,
		Takes: "a number from 0 to 1: " + of,
		Set: func(c *C, value string) (ok bool) {
			var err error
			*at(c), err = strconv.ParseFloat(value, 64)
			return err == nil
		},
		OK:   func(c *C) bool { return *at(c) >= 0 && *at(c) <= 1 },
		Show: func(c *C) string { return strconv.FormatFloat(*at(c), 'g', -1, 64) },
	}
}

// Text is a string that matches a pattern, which takes says in words.
func Text[C any](dsn, field, takes string, pattern *regexp.Regexp, at func(*C) *string) Setting[C] {
	return Setting[C]{
		DSN: dsn, Field: field, Takes: takes,
		Set:  func(c *C, value string) bool { *at(c) = value; return true },
		OK:   func(c *C) bool { return pattern.MatchString(*at(c)) },
		Show: func(c *C) string { return strconv.Quote(*at(c)) },
	}
}
