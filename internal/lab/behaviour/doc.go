// Package behaviour shows through livepool's public API what a pool does on real
// servers under real faults: the tests are all there is here. What can be shown on
// a fake driver in fake time belongs beside the code that it is about, since there
// it takes milliseconds. "bash test.sh" runs these tests, in several processes
// side by side; a maintainer runs one: go test -run TestX ./internal/lab/behaviour.
package behaviour
