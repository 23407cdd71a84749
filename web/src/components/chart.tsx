import "@mantine/charts/styles.css";
import { BarChart } from "@mantine/charts";
import { useTranslation } from "react-i18next";
import type { Overview } from "@/api/client";
import { clock, number } from "@/lib/format";

const MINUTE = 60_000;
const MINUTES = 60;

/** How jobs ended in each minute of the last hour. */
export default function Chart({ pulse, at }: { pulse: Overview["pulse"]; at: string }) {
  const { t } = useTranslation();
  const last = Math.floor(new Date(at).getTime() / MINUTE) * MINUTE;
  const minutes = Array.from({ length: MINUTES }, (_, index) => {
    const minute = last - (MINUTES - 1 - index) * MINUTE;
    return { minute, time: clock(minute), succeeded: 0, failed: 0, other: 0 };
  });
  for (const point of pulse.points) {
    const bar = minutes[Math.floor((point.at_ms - last) / MINUTE) + MINUTES - 1];
    if (!bar) continue;
    bar.succeeded += point.succeeded;
    bar.failed += point.failed;
    bar.other += point.cancelled + point.expired;
  }
  const total = (name: "succeeded" | "failed" | "other") =>
    number(minutes.reduce((sum, bar) => sum + bar[name], 0));
  const label = `${t("overview.chart")}: ${t("state.succeeded")} ${total("succeeded")}, ${t("state.failed")} ${total("failed")}, ${t("state.cancelled")} ${total("other")}`;
  return (
    <div role="img" aria-label={label}>
      <BarChart
        h={260}
        data={minutes}
        dataKey="time"
        type="stacked"
        series={[
          { name: "succeeded", label: t("state.succeeded"), color: "light-dark(#5b8def, #4f7fe0)" },
          { name: "failed", label: t("state.failed"), color: "light-dark(#e0645c, #e0645c)" },
          { name: "other", label: t("state.cancelled"), color: "light-dark(#c4c9d0, #6b737f)" },
        ]}
        tickLine="none"
        gridAxis="x"
        withLegend
        legendProps={{ verticalAlign: "bottom", height: 28 }}
        barProps={{ radius: 2, isAnimationActive: false, maxBarSize: 10 }}
        barChartProps={{ accessibilityLayer: false }}
        xAxisProps={{ minTickGap: 40 }}
        valueFormatter={number}
      />
    </div>
  );
}
