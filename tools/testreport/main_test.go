package main

import (
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	const (
		passed = `{"Action":"output","Package":"p","Test":"TestA","Output":"chatter\n"}
{"Action":"pass","Package":"p","Test":"TestA"}
`
		okay = `{"Action":"output","Package":"p","Output":"PASS\n"}
{"Action":"output","Package":"p","Output":"ok  \tp\t0.1s\n"}
{"Action":"pass","Package":"p"}
`
		bad = `{"Action":"output","Package":"p","Output":"FAIL\tp\t0.1s\n"}
{"Action":"fail","Package":"p"}
`
	)
	tests := []struct {
		name, events string
		ok           bool
		want, not    []string
	}{
		{"all passed", passed + okay, true, []string{"ok  \tp\t0.1s\n1 passed, 0 failed, 0 skipped\n"}, []string{"chatter", "PASS"}},
		{"a package without tests is fine", passed + okay +
			`{"Action":"output","Package":"q","Output":"?   \tq\t[no test files]\n"}` + "\n" + `{"Action":"skip","Package":"q"}` + "\n",
			true, []string{"?   \tq", "1 passed, 0 failed, 0 skipped\n"}, nil},
		{"a failure is shown whole", passed + `{"Action":"output","Package":"p","Test":"TestB","Output":"want 1\n"}` + "\n" +
			`{"Action":"fail","Package":"p","Test":"TestB"}` + "\n" + bad,
			false, []string{"want 1\n", "failed: p TestB\n1 passed, 1 failed, 0 skipped\n", "FAIL\tp"}, []string{"chatter", "without"}},
		{"a skip is a failure", passed + `{"Action":"output","Package":"p","Test":"TestB","Output":"no server\n"}` + "\n" +
			`{"Action":"skip","Package":"p","Test":"TestB"}` + "\n" + okay,
			false, []string{"no server\n", "p TestB\n1 passed, 0 failed, 1 skipped\n"}, nil},
		{"a package that does not build", passed + okay +
			`{"ImportPath":"q [q.test]","Action":"build-output","Output":"q.go:1: syntax error\n"}` + "\n" + `{"Action":"fail","Package":"q"}` + "\n",
			false, []string{"syntax error\n", "failed without a failing test: q\n"}, nil},
		{"a process that dies in a test", passed + `{"Action":"output","Package":"p","Test":"TestB","Output":"panic: no\n"}` + "\n" + bad,
			false, []string{"panic: no\nFAIL\tp", "failed without a failing test: p\n"}, nil},
		{"events that break off", passed + `{"Action":"output","Package":"p","Test":"TestB","Output":"=== RUN\n"}` + "\n",
			false, []string{"never ended: p TestB\n"}, nil},
		{"no test at all", `{"Action":"skip","Package":"p"}` + "\n", false, []string{"0 passed, 0 failed, 0 skipped\n"}, nil},
		{"plain lines go through", "go: no such thing\n" + passed + okay, true, []string{"go: no such thing\n"}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			ok, err := report(strings.NewReader(tt.events), &out)
			if err != nil {
				t.Fatal(err)
			}
			if ok != tt.ok {
				t.Errorf("ok = %t, want %t", ok, tt.ok)
			}
			for _, want := range tt.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("no %q in:\n%s", want, out.String())
				}
			}
			for _, not := range tt.not {
				if strings.Contains(out.String(), not) {
					t.Errorf("%q in:\n%s", not, out.String())
				}
			}
		})
	}
}
