import i18next from "i18next";
import { useEffect, useState } from "react";

const locale = () => i18next.language;

export const number = (value: number) => new Intl.NumberFormat(locale()).format(value);

export const compact = (value: number) =>
  new Intl.NumberFormat(locale(), { notation: "compact", maximumFractionDigits: 1 }).format(value);

export const money = (microusd: number) =>
  new Intl.NumberFormat(locale(), {
    style: "currency",
    currency: "USD",
    maximumFractionDigits: microusd < 10_000 ? 5 : 2,
  }).format(microusd / 1e6);

export const dateTime = (time: string | number) =>
  new Intl.DateTimeFormat(locale(), { dateStyle: "medium", timeStyle: "medium" }).format(new Date(time));

export const clock = (time: string | number) =>
  new Intl.DateTimeFormat(locale(), { timeStyle: "short" }).format(new Date(time));

export function bytes(size: number): string {
  const units = ["byte", "kilobyte", "megabyte", "gigabyte"];
  const step = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(1, size)) / 3));
  return new Intl.NumberFormat(locale(), {
    style: "unit",
    unit: units[step] as string,
    unitDisplay: "short",
    maximumFractionDigits: 1,
  }).format(size / 1_000 ** step);
}

/** A length of time in milliseconds, in two figures at most. */
export function duration(ms: number): string {
  const unit = (value: number, unit: string) =>
    new Intl.NumberFormat(locale(), {
      style: "unit",
      unit,
      unitDisplay: "narrow",
      maximumFractionDigits: value < 10 && unit === "second" ? 1 : 0,
    }).format(value);
  if (ms < 1_000) return unit(Math.max(0, Math.round(ms)), "millisecond");
  const seconds = ms / 1_000;
  if (seconds < 60) return unit(seconds, "second");
  const parts: [number, string][] = [
    [Math.floor(seconds / 86_400), "day"],
    [Math.floor(seconds / 3_600) % 24, "hour"],
    [Math.floor(seconds / 60) % 60, "minute"],
    [Math.floor(seconds) % 60, "second"],
  ];
  const first = parts.findIndex(([value]) => value > 0);
  return parts
    .slice(first, first + 2)
    .filter(([value]) => value > 0)
    .map(([value, name]) => unit(value, name))
    .join(" ");
}

export function ago(time: string, now: number): string {
  const seconds = Math.round((new Date(time).getTime() - now) / 1_000);
  const format = new Intl.RelativeTimeFormat(locale(), { numeric: "auto", style: "short" });
  const size = Math.abs(seconds);
  if (size < 60) return format.format(seconds, "second");
  if (size < 3_600) return format.format(Math.round(seconds / 60), "minute");
  if (size < 86_400) return format.format(Math.round(seconds / 3_600), "hour");
  return format.format(Math.round(seconds / 86_400), "day");
}

/** The time, which draws anew each second. */
export function useNow(every = 1_000): number {
  const [now, setNow] = useState(Date.now);
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), every);
    return () => clearInterval(timer);
  }, [every]);
  return now;
}
