package monitoringcheck

import (
	"slices"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/promql/parser"
)

func parserOf(t *testing.T) parser.Parser {
	t.Helper()
	return parser.NewParser(parser.Options{})
}

// TestQueriesAskForWhatThereIs parses each query and looks up the metrics and labels that it names.
func TestQueriesAskForWhatThereIs(t *testing.T) {
	known := metrics(t)
	queries := dashboardQueries(t)
	for _, rule := range rules(t) {
		queries = append(queries, query{rule.Alert, rule.Expr})
	}
	asked := map[string]bool{}
	for _, q := range queries {
		expr, err := parserOf(t).ParseExpr(q.text)
		if err != nil {
			t.Errorf("%s: %v", q.where, err)
			continue
		}
		var here []string // labels of the metrics in the query
		parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
			selector, is := node.(*parser.VectorSelector)
			if !is {
				return nil
			}
			of, there := known[selector.Name]
			if !there {
				t.Errorf("%s: there is no metric %q", q.where, selector.Name)
			}
			asked[selector.Name] = true
			here = append(here, of...)
			for _, matcher := range selector.LabelMatchers {
				if matcher.Name != model.MetricNameLabel && !slices.Contains(of, matcher.Name) {
					t.Errorf("%s: %s has no label %s", q.where, selector.Name, matcher.Name)
				}
			}
			return nil
		})
		parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
			var named []string
			switch n := node.(type) {
			case *parser.AggregateExpr:
				named = n.Grouping
			case *parser.BinaryExpr:
				if n.VectorMatching != nil {
					named = append(n.VectorMatching.MatchingLabels, n.VectorMatching.Include...)
				}
			}
			for _, label := range named {
				if !slices.Contains(here, label) {
					t.Errorf("%s: nothing in it has the label %s", q.where, label)
				}
			}
			return nil
		})
	}
	if len(asked) < 30 {
		t.Errorf("the queries ask for %d series only: %v", len(asked), asked)
	}
}
