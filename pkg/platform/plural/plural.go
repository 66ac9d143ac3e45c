// Package plural writes numbers with their nouns.
package plural

import "fmt"

// Of returns a number with its noun, such as "1 file" or "2 files". The plural is that of forms, or the noun with an s.
func Of[N int | int64](n N, noun string, forms ...string) string {
	if n != 1 {
		noun += "s"
		if len(forms) > 0 {
			noun = forms[0]
		}
	}
	return fmt.Sprintf("%d %s", n, noun)
}
