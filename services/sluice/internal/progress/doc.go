// Package progress shows progress: with live bars on a terminal, and with a plain line every few seconds elsewhere.
package progress
