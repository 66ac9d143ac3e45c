package typefilter

import "testing"

func TestMatches(t *testing.T) {
	for _, c := range []struct {
		query, line string
		want        bool
	}{
		{"Observation?status=final", `{"resourceType":"Observation","status":"final"}`, true},
		{"Observation?status=final", `{"resourceType":"Observation","status":"amended"}`, false},
		{"Observation?_id=a,b", `{"resourceType":"Observation","id":"b"}`, true},
	} {
		q, err := Parse(c.query)
		if err != nil {
			t.Errorf("%s: %v", c.query, err)
			continue
		}
		got, err := Compile(q.Type(), []Query{q}, nil).Matches([]byte(c.line))
		if err != nil || got != c.want {
			t.Errorf("%s of %s: %v, %v", c.query, c.line, got, err)
		}
	}
}
