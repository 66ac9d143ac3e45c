package fhir

import (
	"slices"
	"testing"
)

func TestFields(t *testing.T) {
	names := []string{"a", "b", "c"}
	values := make([][]byte, 3)
	read := func(text string) (found []string, end int, err error) {
		end, err = Fields([]byte(text), names, values)
		for _, value := range values {
			found = append(found, string(value))
		}
		return found, end, err
	}
	text := ` {"b": [1, {"a":2}] ,"\u0061":"x","d":{"a":3}} rest`
	found, end, err := read(text)
	if err != nil || text[end:] != " rest" || !slices.Equal(found, []string{`"x"`, `[1, {"a":2}]`, ""}) {
		t.Errorf("%q, %d, %v", found, end, err)
	}
	if string(Text(values[0])) != "x" || Text(values[1]) != nil || Text(values[2]) != nil {
		t.Error("a text that is not one, or none of one")
	}
	for _, text := range []string{"", "[]", "null", `{"a":1`, `{"a":1,"a":2}`, `{"A":1}`, `{"a":}`, `{"d":[1,]}`, "{\n}", `{"\u0000":1}`} {
		if _, _, err := read(text); err == nil {
			t.Errorf("%q is read", text)
		}
		if err := OnlyFields([]byte(text), names, values); err == nil {
			t.Errorf("%q is read", text)
		}
	}
	if err := OnlyFields([]byte(`{"a":1} {}`), names, values); err == nil {
		t.Error("two objects are read as one")
	}
	line := []byte(`{"b":[1],"a":{}}`)
	if n := testing.AllocsPerRun(10, func() { _ = OnlyFields(line, names, values) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestElements(t *testing.T) {
	for text, want := range map[string][]string{
		`[]`: nil, `[ ]`: nil, `[1]`: {"1"}, `[1, "a,]" ,{"b":[2]},null, [3] ]`: {"1", `"a,]"`, `{"b":[2]}`, "null", "[3]"},
	} {
		var found []string
		if err := Elements([]byte(text), func(value []byte) (bool, error) {
			found = append(found, string(value))
			return true, nil
		}); err != nil || !slices.Equal(found, want) {
			t.Errorf("%s: %q, %v", text, found, err)
		}
	}
	calls := 0
	if err := Elements([]byte(`[1,2,3]`), func([]byte) (bool, error) { calls++; return calls < 2, nil }); err != nil || calls != 2 {
		t.Errorf("%d calls, %v", calls, err)
	}
}
