package typefilter

import (
	"errors"
	"strings"
)

var errEscape = errors.New(`a backslash is followed by a comma, "|", "$" or a backslash`)

// split divides a value at each separator that no backslash precedes. The parts keep their escapes (R4 3.1.1.4.18).
func split(text string, separator byte) ([]string, error) {
	var parts []string
	start := 0
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '\\':
			if i++; i == len(text) || strings.IndexByte(`\,|$`, text[i]) < 0 {
				return nil, errEscape
			}
		case separator:
			parts = append(parts, text[start:i])
			start = i + 1
		}
	}
	return append(parts, text[start:]), nil
}

// unescape removes the escapes of a part.
var unescape = strings.NewReplacer(`\\`, `\`, `\,`, `,`, `\|`, `|`, `\$`, `$`).Replace

// unescaped removes the escapes of all values.
func unescaped(values []string) []string {
	plain := make([]string, len(values))
	for i, value := range values {
		plain[i] = unescape(value)
	}
	return plain
}

// fields divides a value at each "|" and removes the escapes of the parts.
func fields(value string) []string {
	parts, _ := split(value, '|') // parseCondition has checked the escapes
	return unescaped(parts)
}
