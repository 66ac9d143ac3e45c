// Package progress shows people how far things are: with live bars on a terminal, with a plain line now and then
// elsewhere. It writes to standard error only: standard output is for results.
package progress
